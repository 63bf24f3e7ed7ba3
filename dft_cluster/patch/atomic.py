"""Files and folders that are there whole or not at all."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from dft_cluster.errors import InputError


@contextmanager
def new_file(out: Path) -> Iterator[BinaryIO]:
    """A file that takes the name `out` once the block has ended well; otherwise nothing of it stays."""
    with _unfinished(out) as temporary:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(out)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder that takes the name `out` once the block has ended well; only an empty one may be there."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is there already; name an empty or a new folder")
    with _unfinished(out) as temporary:
        temporary.mkdir()
        yield temporary
        _sync(temporary)
        temporary.replace(out)


@contextmanager
def _unfinished(out: Path) -> Iterator[Path]:
    if not out.name:
        raise InputError(f"{str(out)!r} is no name for something new")
    temporary = out.absolute().with_name(f".{out.name}.{secrets.token_hex(4)}.partial")
    try:
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _sync(out.absolute().parent)
    except OSError as error:
        raise InputError(f"{out} could not be written, and nothing of it stays: {error}") from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    """What was renamed or made in a folder outlives a power cut once the folder itself is on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
