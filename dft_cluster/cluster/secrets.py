"""Keys from a file: they reach driver and ranks without standing in a job's environment, which the dashboard shows."""

import os
import re
from pathlib import Path

from dft_cluster.errors import InputError

VARIABLE = "DFT_SECRETS_FILE"
"""Names the file to a rank; the name of a file is no secret."""
_LINE = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)=(.*)")


def load(path: str) -> None:
    """Puts every NAME=value of the file into this process's environment. No name and no value is ever told."""
    file = Path(path)
    if not file.is_file():
        raise InputError(
            f"cluster.secrets: {path}: no such file on this node; right would be a path that every node sees"
        )
    if file.stat().st_mode & 0o077:
        raise InputError(f"cluster.secrets: {path} can be read by others than its owner; right would be chmod 600")
    found = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise InputError(f"cluster.secrets: line {number} of {path} is not NAME=value")
        found[match[1]] = match[2].strip().strip("'\"")
    os.environ.update(found)
