"""How far a run has come: all that one team of ranks leaves to the next."""

import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

from dft_cluster.methods.prepare import WARM_UP, Prepared
from dft_cluster.ranks.rank import Source
from dft_cluster.runs.alone import alone
from dft_cluster.runs.console import Console
from dft_cluster.runs.record import Record
from dft_cluster.runs.track import Tracker

T = TypeVar("T")


class Progress:
    """A run's record and what is open beside it: a folder for what is passing, W&B, the seconds that count."""

    def __init__(self, prepared: Prepared, record: Record, console: Console) -> None:
        self.prepared, self.config, self.record, self.console = prepared, prepared.config, record, console
        self.storage = record.storage
        self.result: dict[str, Any] | None = None
        self.tracker: Tracker | None = None
        self.began = time.perf_counter()
        self.earlier = self._until_now()
        self.useful_seconds = 0.0
        """Of fine-tuning and evaluation."""

    def __enter__(self) -> "Progress":
        self._open, self._alone = ExitStack(), False
        self.scratch = Path(self._open.enter_context(tempfile.TemporaryDirectory(prefix="dft-")))
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        with self._open:
            if self.tracker is not None:
                self.tracker.close(failed=error is not None)

    def track(self) -> Tracker:
        """W&B, which is begun before the first figure is there: a wrong key should cost nothing."""
        if self.tracker is None:
            self.tracker = Tracker(self.config, self.storage, self.record.identity, self.record.rounds)
        return self.tracker

    @property
    def warm(self) -> bool:
        """Whether a warm-up has given the run a base of its own."""
        return self.config.warmup.epochs > 0 and self.storage.exists("base.json")

    @property
    def next(self) -> int:
        """What comes next: the warm-up, or the round after the last that is finished."""
        if self.config.warmup.epochs > 0 and not self.warm:
            return WARM_UP
        return max(self.record.checkpoints.numbers(), default=0) + 1

    @property
    def source(self) -> Source:
        """What the next round's θ is laid over."""
        if self.warm:
            return Source(self.config.model, self.storage.uri, "base")
        return Source(self.config.model)

    @property
    def base(self) -> str:
        """Where the warmed model is or will be."""
        return f"{self.storage.local}/base" if self.storage.local else f"{self.storage.uri}/base"

    def seat(self, number: int) -> Prepared:
        """What a round needs of its ranks (the end needs no more than the last one)."""
        return self.prepared.seat(min(number, self.config.method.rounds))

    def needs_others(self, seat: Prepared, number: int) -> bool:
        """Whether a round needs ranks that are built otherwise than for this seat."""
        return self.seat(number).needs() != seat.needs()

    def begin(self) -> None:
        """From now on the folder is this driver's alone; until a moment ago another one may have been at work in it."""
        self.storage.make()
        if not self._alone:
            self._open.enter_context(alone(self.storage, self.console.say))
            self._alone = True
        self.record.look_again()
        self.earlier = self._until_now()
        self.result = self.record.result

    def _until_now(self) -> float:
        """Seconds that drivers before this one were at work."""
        return max((line.get("at", 0.0) for line in self.record.rounds), default=0.0)

    def elapsed(self) -> float:
        """Seconds since this driver began."""
        return time.perf_counter() - self.began

    def counted(self, work: Callable[[], T]) -> T:
        """Does what is useful, fine-tuning and evaluation, and counts its seconds."""
        began = time.perf_counter()
        result = work()
        self.useful_seconds += time.perf_counter() - began
        return result

    def say_and_note(self, text: str) -> None:
        """What both the console and the report should say."""
        self.console.say(text)
        self.record.note(text)
