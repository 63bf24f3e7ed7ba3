"""A comparison on one device, several of its runs beside each other, each in a fresh process of its own and without Ray.

    python -m benchmarks.beside CONFIG.yaml [dotted.key=value …] [--at-once 8] [--heavy 4] [--seconds 500] [--only dft,full]
                                [--searches] [--tables]

The same folder, searches and cells as `jobs/compare.py` makes of the same config, which goes on from there. Small runs leave
most of a large device idle; beside each other they fill it, and their seconds say nothing about the methods' cost. What is not
begun within `--seconds`, or failed, is left for the next call. Runs that store their optimizer after every round are `--heavy`.
"""

import argparse
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from dft_cluster.comparison.loading import load
from dft_cluster.comparison.results import Cell, Row
from dft_cluster.comparison.run import Comparison
from dft_cluster.comparison.search import Search
from dft_cluster.comparison.settings import CompareSettings, sections
from dft_cluster.config_file import validate
from dft_cluster.errors import InputError
from dft_cluster.local import in_this_process
from dft_cluster.runs.alone import alone
from dft_cluster.runs.console import Console

HEAVY = ("full", "ft_c", "f_learning")
SLOW = ("rome", "memit", "dft")


@dataclass(frozen=True)
class Task:
    """A warm-up, a search, or a cell: what it needs first, and whether it takes much memory."""

    kind: str
    labels: tuple[Any, ...]
    after: frozenset["Task"] = field(default=frozenset(), compare=False)
    heavy: bool = field(default=False, compare=False)
    slow: bool = field(default=False, compare=False)


def tasks(settings: CompareSettings) -> Iterator[Task]:
    over, likes = (settings.search.over, settings.search.like) if settings.search else ({}, {})
    for model, data in product(settings.models, settings.data):
        warm = {key: Task("warm", (model, data, key)) for key in (*(["development"] if over else []), *settings.seeds)}
        yield from warm.values()
        found = {}
        for method in settings.methods:
            config = validate(sections(settings, model, data, method))
            like = likes.get(method, method)
            weigh = {"heavy": config.method.name in HEAVY and config.method.layers in ("auto", "all"),
                     "slow": config.method.name in SLOW}  # fmt: skip
            if like not in found and like in over:
                found[like] = Task("search", (model, data, like), frozenset({warm["development"]}), **weigh)
                yield found[like]
            for seed in settings.seeds:
                first = {warm[seed], *([found[like]] if like in found else [])}
                yield Task("cell", (model, data, method, seed), frozenset(first), **weigh)


def _turn(task: Task) -> tuple[int, bool]:
    """When a task is begun, as far as others let it: a cell that waits for no search may take long, or it would have one."""
    early = task.kind == "cell" and not any(first.kind == "search" for first in task.after)
    return (1 if early else {"warm": 0, "search": 2, "cell": 3}[task.kind], not task.slow)


@dataclass(frozen=True)
class Done:
    """How a task ended: why it failed, or what a search found."""

    failed: str = ""
    search: Any = None


def do(settings: CompareSettings, scratch: Path, task: Task, searches: dict[str, Any]) -> Done:
    """One task, in a process that ends with it: what a process takes of memory at most is that of one run."""
    comparison = Comparison(settings, in_this_process, _console(task), Path(tempfile.mkdtemp(dir=scratch)))
    if comparison.searches is not None:
        comparison.searches.found |= {name: Search.from_json(one) for name, one in searches.items()}
    try:
        return _done(comparison, task)
    except Exception as error:  # the others go on
        return Done(comparison.runs.reason(error))


def _console(task: Task) -> Console:
    name = ".".join(map(str, task.labels))
    return Console(lambda text: print(f"{name}: {text}", flush=True))


def _done(comparison: Comparison, task: Task) -> Done:
    settings = comparison.settings
    if task.kind == "warm":
        model, data, key = task.labels
        parted = comparison.splits[data]
        facts = parted.development if key == "development" else parted.reported
        seed = settings.seeds[0] if key == "development" else key
        comparison.runs.warm(sections(settings, model, data), seed, f"{model}.{data}.{key}", facts)
        return Done()
    if task.kind == "search":
        model, data, method = task.labels
        assert comparison.searches is not None
        found = comparison.searches.go_on(model, data, method, lambda: None)
        return Done("" if found.ended else comparison.searches.failure(model, data, method), found.to_json())
    row = comparison.run(Cell(*task.labels))
    return Done("" if row.finished else row.reason)


def left_to_do(settings: CompareSettings, done: set[Task], only: Collection[str], kind: str) -> list[Task]:
    """In the order of their turns: the cells (or searches) of these methods that are not done, and what those wait for."""
    order = sorted(tasks(settings), key=_turn)
    left = {task for task in order if task.kind == kind and task.labels[2] in only} - done
    for _ in range(2):  # a cell waits for its search, and both for a warm-up
        left |= {first for task in left for first in task.after} - done
    return [task for task in order if task in left]


def finished(whole: Comparison) -> set[Task]:
    """What an earlier start has done."""
    known = [name for name, one in whole.searches.found.items() if one.ended] if whole.searches else []
    done = {Task("search", tuple(name.split("."))) for name in known}
    return done | {Task("cell", (c.model, c.data, c.method, c.seed)) for c, row in whole.rows.items() if row.finished}


def to_the_end(whole: Comparison, asked: argparse.Namespace, scratch: Path) -> tuple[bool, dict[Task, str]]:
    """Whether everything was begun in time and came to its end; and why what failed did."""
    began, searches, done = time.monotonic(), whole.searches, finished(whole)
    only = asked.only.split(",") if asked.only else whole.settings.methods
    left = left_to_do(whole.settings, done, only, "search" if asked.searches else "cell")
    running: dict[Future[Done], Task] = {}
    failed: dict[Task, str] = {}
    broken = False
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(asked.at_once, fresh, max_tasks_per_child=1) as pool:
        while left or running:
            in_time = time.monotonic() - began < asked.seconds and not broken
            for task in list(left):
                full = task.heavy and sum(t.heavy for t in running.values()) >= asked.heavy
                if in_time and len(running) < asked.at_once and task.after <= done and not full:
                    found = {name: one.to_json() for name, one in searches.found.items()} if searches else {}
                    try:
                        running[pool.submit(do, whole.settings, scratch, task, found)] = task
                        left.remove(task)
                    except BrokenExecutor:
                        broken, in_time = True, False
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                task, lost = running.pop(future), future.exception()
                broken = broken or isinstance(lost, BrokenExecutor)  # a process was killed, and the pool with it
                result = Done(f"{type(lost).__name__}: {lost}") if lost else future.result()
                if result.failed:
                    failed[task] = result.failed
                else:
                    done.add(task)
                if result.search is not None and searches is not None:
                    searches.found[".".join(task.labels)] = Search.from_json(result.search)
                    searches.keep()
                seconds, told = time.monotonic() - began, f"failed: {result.failed}" if result.failed else "finished"
                print(f"[{seconds:6.1f} s] {task.kind} {task.labels} {told}; {len(left)} left", flush=True)
    for task in left:  # in the order in which they wait for one another
        if reasons := [failed[first] for first in task.after if first in failed]:
            failed[task] = reasons[0]
    return not left and not failed, failed


def main() -> int:
    asking = argparse.ArgumentParser()
    asking.add_argument("config")
    asking.add_argument("overrides", nargs="*")
    asking.add_argument("--at-once", type=int, default=8)
    asking.add_argument("--heavy", type=int, default=4)
    asking.add_argument("--seconds", type=float, default=float("inf"))
    asking.add_argument("--only", help="methods by label, with commas between them; the others are left")
    asking.add_argument("--searches", action="store_true", help="search, and run no cell")
    asking.add_argument("--tables", action="store_true", help="write the results at the end")
    asked = asking.parse_intermixed_args()
    with tempfile.TemporaryDirectory(prefix="dft-beside-") as name:
        whole = Comparison(load(asked.config, asked.overrides), in_this_process, Console(), Path(name))
        if asked.only and (unknown := set(asked.only.split(",")) - whole.settings.methods.keys()):
            raise InputError(f"--only: {', '.join(sorted(unknown))}: none of {', '.join(whole.settings.methods)}")
        whole.room.make()
        with alone(whole.room, whole.console.say):
            whole.look()
            all_done, failed = to_the_end(whole, asked, Path(name))
            if asked.tables:
                whole.look()
                cells = {Cell(*task.labels): reason for task, reason in failed.items() if task.kind == "cell"}
                whole.rows |= {cell: Row(cell, "failed", reason) for cell, reason in cells.items()}
                whole.write()
    return 0 if all_done else 1


if __name__ == "__main__":
    sys.exit(main())
