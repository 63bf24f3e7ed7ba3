"""Storage that refuses for a while: asked again, each time after twice as long, and then no more."""

import functools
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

PAUSES = (1.0, 2.0, 4.0, 8.0)
"""Seconds before each further attempt."""
NEVER = (FileNotFoundError, NotADirectoryError, IsADirectoryError, FileExistsError)
"""What no waiting changes."""


_TRYING = ContextVar("_TRYING", default=False)
"""Whether something patient is under way: what it does in its turn is tried again with the whole, and not by itself."""


def patiently(work: Callable[P, T]) -> Callable[P, T]:
    """Tries again after an error of the file system. `work` must be such that doing it twice is doing it once."""

    @functools.wraps(work)
    def trying(*args: P.args, **kwargs: P.kwargs) -> T:
        if _TRYING.get():
            return work(*args, **kwargs)
        before = _TRYING.set(True)
        try:
            for pause in PAUSES:
                try:
                    return work(*args, **kwargs)
                except NEVER:
                    raise
                except OSError:
                    time.sleep(pause)
            return work(*args, **kwargs)
        finally:
            _TRYING.reset(before)

    return trying
