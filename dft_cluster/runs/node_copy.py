"""One copy on a node of what lies in a bucket, for all ranks that run there.

The copy lies among the node's temporary files, named by what it is a copy of. Whoever uses it holds a lock, which goes with
the process however that ends; the last one removes the copy. What a killed one left goes when the next one comes.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from dft_cluster.runs.storage import Storage


@contextmanager
def on_this_node(storage: Storage, name: str) -> Iterator[Path]:
    """A local path of a file or folder of the storage: its own, or that of the node's copy, which stays as long as the block."""
    if storage.local is not None:
        yield storage.local / name
        return
    room = _room()
    for left in room.glob("*.lock"):
        _clear(left)
    place = room / hashlib.sha256(repr((storage.uri, name, storage.contents(name))).encode()).hexdigest()[:32]
    lock = _held(place, storage, name)
    try:
        yield place / name
    finally:
        lock.close()
        _clear(Path(lock.name))


def _room() -> Path:
    """A folder of this user's alone."""
    room = Path(tempfile.gettempdir()) / f"dft-copies-{os.getuid()}"
    room.mkdir(mode=0o700, exist_ok=True)
    if room.stat().st_uid != os.getuid():
        raise PermissionError(f"{room} is not this user's own")
    return room


def _held(place: Path, storage: Storage, name: str) -> BinaryIO:
    """The lock of the copy, shared with others, once the copy is whole; one alone makes it."""
    while True:
        lock = place.with_suffix(".lock").open("ab")
        try:
            fcntl.flock(lock, fcntl.LOCK_SH)
            if _stands(lock) and (place / name).exists():
                return lock
            fcntl.flock(lock, fcntl.LOCK_EX)
            if _stands(lock):
                storage.fetch(name, place)
        except BaseException:
            lock.close()
            raise
        lock.close()


def _stands(lock: BinaryIO) -> bool:
    """Whether the file that is locked is still the one that has the name: the last one to go may have removed it."""
    try:
        return Path(lock.name).stat().st_ino == os.fstat(lock.fileno()).st_ino
    except FileNotFoundError:
        return False


def _clear(name: Path) -> None:
    """Removes a copy that nobody uses."""
    with contextlib.suppress(FileNotFoundError), name.open("rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        if _stands(lock):
            shutil.rmtree(name.with_suffix(""), ignore_errors=True)
            name.unlink()
