"""A Dockerfile and its .dockerignore as data."""

import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Step:
    word: str
    """FROM, RUN, COPY …"""
    text: str
    """What follows, flags included, lines joined."""

    @property
    def flags(self) -> dict[str, str]:
        return dict(part[2:].split("=", 1) for part in self.text.split() if part.startswith("--") and "=" in part)

    @property
    def rest(self) -> str:
        """What follows the flags."""
        return re.sub(r"^(--\S+\s+)+", "", self.text)


def steps(file: Path) -> list[Step]:
    """The instructions in order; comments gone, a backslash at a line's end followed."""
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [Step(*line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def last_stage(found: list[Step]) -> list[Step]:
    """What the image is made of: all behind the last FROM, that one included."""
    start = max(i for i, step in enumerate(found) if step.word == "FROM")
    return found[start:]


def variables(step: Step) -> dict[str, str]:
    """NAME=value pairs of an ENV or ARG."""
    return dict(pair.split("=", 1) for pair in shlex.split(step.text) if "=" in pair)


def _pattern(glob: str) -> re.Pattern[str]:
    parts = re.split(r"(\*\*/|\*|\?)", glob.strip("/"))
    return re.compile("".join({"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}.get(p, re.escape(p)) for p in parts))


class Ignore:
    """A .dockerignore: the last rule that matches a path, or a folder above it, decides."""

    def __init__(self, file: Path) -> None:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
        written = [line for line in lines if line and not line.startswith("#")]
        self.rules = [(_pattern(line.removeprefix("!")), not line.startswith("!")) for line in written]

    def leaves_out(self, path: str) -> bool:
        names = path.split("/")
        above = ["/".join(names[: i + 1]) for i in range(len(names))]
        return next((out for rule, out in reversed(self.rules) if any(map(rule.fullmatch, above))), False)


def context(root: Path = ROOT) -> Iterator[str]:
    """The files that a build sees. A folder at the top that is left out is not entered: nothing in it is asked for again."""
    ignore = Ignore(root / ".dockerignore")
    for folder, folders, files in os.walk(root):
        inside = Path(folder).relative_to(root).as_posix()
        at = "" if inside == "." else f"{inside}/"
        folders[:] = sorted(name for name in folders if not ignore.leaves_out(at + name))
        yield from (at + name for name in sorted(files) if not ignore.leaves_out(at + name))
