"""Work on blocks in a few threads, with the results in order and only a few blocks in memory."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST_THREADS = 8
"""Beyond this the disk, not the hash, is what one waits for."""


def threads() -> int:
    return min(len(os.sched_getaffinity(0)), MOST_THREADS)


def ordered(work: Callable[[Item], Result], items: Iterable[Item]) -> Generator[Result, None, None]:
    """`map(work, items)` in threads; reading, hashing and copying all release the interpreter's lock.

    `items` is advanced in the caller's thread, at most one window of results ahead.
    """
    window = threads() + 1
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads()) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > window:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
