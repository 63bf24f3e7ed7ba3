"""What a person sees: a live line in a terminal, plain lines in a job's log."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console as Rich
from rich.live import Live
from rich.text import Text

Progress = tuple[str, int, int, float]
QUIET = 10.0  # seconds after which a plain log says that it is still waiting


class Console:
    """Speaks of phases as they happen. `tick` is called while something is waited for."""

    def __init__(self, say: Callable[[str], None] | None = None) -> None:
        self._rich = Rich(highlight=False)
        self._say = say
        self._began = self._last = time.monotonic()
        self._phase = ""
        self._live: Live | None = None
        self._rounds_done: list[float] = []
        self._end: float | None = None  # when the last round would be done at this pace

    def say(self, text: str) -> None:
        """A line that stays."""
        self._end_live()
        stamp = f"[{time.monotonic() - self._began:6.1f} s] "
        if self._say is not None:
            self._say(stamp + text)
        else:
            self._rich.print(Text(stamp, style="dim") + Text(text), soft_wrap=True)
        self._last = time.monotonic()

    def phase(self, text: str) -> None:
        """What is being done now."""
        self._phase = text
        if self._terminal:
            self._show(text)
        else:
            self.say(f"{text} …")

    def tick(self, ranks: Mapping[str, Progress]) -> None:
        """Where every rank stands."""
        told = [self._of_rank(name, progress) for name, progress in ranks.items()]
        text = " | ".join(part for part in told if part)
        if self._terminal:
            self._show(f"{self._phase} … {text}{self._left()}")
        elif time.monotonic() - self._last > QUIET:
            self.say(f"{self._phase} … {text}{self._left()}")

    def _left(self) -> str:
        return "" if self._end is None else f", at most {max(0.0, self._end - time.monotonic()):.0f} s left"

    def round(self, line: Mapping[str, Any], target: int) -> None:
        """A finished round in one line, with what is left at this pace."""
        if line["round"] == 0:
            self._rounds_done.clear()  # the pace of another run says nothing about this one
        self._rounds_done.append(time.monotonic())
        figures = [
            f"{name} {line[name]['token']:.1f}/{line[name]['exact']:.1f}"
            for name in ("reliability", "generality", "locality") if name in line
        ]  # fmt: skip
        took = [b - a for a, b in zip(self._rounds_done, self._rounds_done[1:], strict=False)]
        more = target - line["round"]
        self._end = time.monotonic() + sum(took) / len(took) * more if took and more > 0 else None
        told = f"{', '.join(figures)} (token/exact %)" if figures else "not measured"
        self.say(f"round {line['round']}: {told}{self._left()}")

    def close(self) -> None:
        self._end_live()

    @property
    def _terminal(self) -> bool:
        return self._say is None and self._rich.is_terminal

    @staticmethod
    def _of_rank(name: str, progress: Progress) -> str:
        phase, done, total, loss = progress
        counted = f" {done}/{total}" if total else ""
        return f"{name}: {phase}{counted}" + (f", loss {loss:.3f}" if loss else "")

    def _show(self, text: str) -> None:
        if self._live is None:
            self._live = Live(console=self._rich, transient=True, refresh_per_second=4)
            self._live.start()
        self._live.update(Text(f"[{time.monotonic() - self._began:6.1f} s] {text}", overflow="ellipsis", no_wrap=True))

    def _end_live(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
