"""One driver at a time in a run's folder, whichever cluster it has: a lock that ends with the process that took it.

Drivers of one cluster are told apart by `cluster.lock` as well, in a bucket too, where no lock can lie.
"""

import errno
import fcntl
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

from dft_cluster.errors import InputError
from dft_cluster.runs.storage import Storage

FILE = ".lock"
_KNOWS_NONE = (errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL)
"""What a file system without locks answers: there a driver has to be believed."""


@contextmanager
def alone(folder: Storage) -> Iterator[None]:
    """Refuses a folder in which another process is at work."""
    if folder.local is None:
        yield
        return
    # The file stays: were it removed, one driver could hold the old one and another the new one.
    with (folder.local / FILE).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise InputError(
                f"run.name: {file.read() or 'another process'} is at work in {folder.uri}; wait for it, stop it, or name "
                "another run"
            ) from error
        except OSError as error:
            if error.errno not in _KNOWS_NONE:
                raise
        file.truncate(0)
        file.write(f"process {os.getpid()} of {platform.node()}")
        file.flush()
        yield
