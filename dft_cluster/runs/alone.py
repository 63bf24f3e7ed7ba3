"""One driver at a time in a run's folder, whichever cluster it has: a lock that ends with the process that took it.

Drivers of one cluster are told apart by `cluster.lock` as well, in a bucket too, where no lock can lie.
"""

import errno
import fcntl
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    # The file stays: were it removed, one driver could hold the old one and another the new one.
    with (folder.local / FILE).open("a+") as file:
        _take(file, folder, say)
        file.truncate(0)
        file.write(f"process {os.getpid()} of {platform.node()}")
        file.flush()
        yield


def _take(file: IO[str], folder: Storage, say: Callable[[str], None]) -> None:
    until = None
    while not _taken(file):
        file.seek(0)
        holder = file.read()
        gone = f"; if that machine is gone, remove {folder.path(FILE)}"
        if holder.endswith(f" of {platform.node()}"):
            until, gone = 0.0, ""
        elif until is None:
            until = time.monotonic() + LEASE
            say(
                f"{holder or 'another process'} is at work in {folder.uri}, or its machine was lost: waiting {LEASE:.0f} s"
            )
        if time.monotonic() >= until:
            raise InputError(
                f"run.name: {holder or 'another process'} is at work in {folder.uri}; wait for it, stop it, or name another "
                f"run{gone}"
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
