"""One driver at a time in a run's folder, whichever cluster it has: a lock that ends with the process that took it.

Drivers of one cluster are told apart by `cluster.lock` as well, in a bucket too, where no lock can lie.
"""

import errno
import fcntl
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from dft_cluster.errors import InputError
from dft_cluster.runs.storage import Storage

FILE = ".lock"
LEASE = 120.0
"""Seconds after which a file server has let go of what a machine held that is gone (NFS 4 commonly takes 90)."""
POLL = 2.0
_KNOWS_NONE = (errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL)
"""What a file system without locks answers: there a driver has to be believed."""


@contextmanager
def alone(folder: Storage, say: Callable[[str], None]) -> Iterator[None]:
    """Refuses a folder in which another process is at work; one of another machine may be gone with it, and is waited for."""
    if folder.local is None:
        yield
        return
    file = _held(folder.local / FILE, say)
    try:
        file.truncate(0)
        file.write(f"process {os.getpid()} of {platform.node()}\n{boot()}\n")
        file.flush()
        yield
    finally:
        # Said, not left to the closing of the file: a fork of this process may have it open as well.
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_UN)
        file.close()


def boot() -> str:
    """What tells this machine, since it was started, from another of the same name; empty where the system does not say."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return ""


def _held(place: Path, say: Callable[[str], None]) -> IO[str]:
    """The lock's file, once it is held. It stays when it is let go: two drivers could hold an old one and a new one."""
    until = None
    while True:
        file = place.open("a+", encoding="utf-8")
        if _taken(file):
            if _same(file, place):
                return file
            file.close()
            continue
        with file:
            file.seek(0)
            holder, where = (*file.read().splitlines(), "", "")[:2]
        holder = holder or "another process"
        gone = f"; if that machine is gone, remove {place}"
        if holder.endswith(f" of {platform.node()}") and where == boot():
            until, gone = 0.0, ""
        elif until is None:
            until = time.monotonic() + LEASE
            say(f"{holder} is at work in {place.parent}, or its machine was lost: waiting up to {LEASE:.0f} s")
        if time.monotonic() >= until:
            raise InputError(
                f"run.name: {holder} is at work in {place.parent}; wait for it, stop it, or name another run{gone}"
            )
        time.sleep(POLL)


def _taken(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _KNOWS_NONE:
            raise
    return True


def _same(file: IO[str], place: Path) -> bool:
    """Whether the file is still the one that lies there, and was not removed by hand."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), place.stat())
    except FileNotFoundError:
        return False
