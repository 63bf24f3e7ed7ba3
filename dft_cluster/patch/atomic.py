"""Files and folders that are there whole or not at all."""

import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from dft_cluster.errors import InputError


def apart(out: Path, *read: Path) -> None:
    """Refuses to write over a file that is read, or into a folder that is."""
    for one in read:
        if one.resolve() in (out.resolve(), out.resolve().parent):
            raise InputError(f"{out} would be written over {one} or into it, which is only read; name another place")


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
        _sync(os.open(temporary, os.O_RDONLY))
        temporary.replace(out)


@contextmanager
def syncing() -> Iterator[Callable[[BinaryIO], None]]:
    """Gives `sync(file)`: what it holds goes to the disk in another thread; at the end all is there."""
    started: list[Future[None]] = []
    with ThreadPoolExecutor(1) as helper:

        def sync(file: BinaryIO) -> None:
            file.flush()
            started.append(helper.submit(_sync, os.dup(file.fileno())))

        yield sync
        for future in started:
            future.result()


@contextmanager
def _unfinished(out: Path) -> Iterator[Path]:
    if not out.name:
        raise InputError(f"{str(out)!r} is no name for something new")
    temporary = out.absolute().with_name(f".{out.name}.{secrets.token_hex(4)}.partial")
    try:
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _sync(os.open(out.absolute().parent, os.O_RDONLY))
    except OSError as error:
        raise InputError(f"{out} could not be written, and nothing of it stays: {error}") from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)


def _sync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
