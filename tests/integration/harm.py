"""Harm done to real ranks in the middle of a verb: killed, or stopped without dying."""

import os
import signal
import threading
import time
from typing import Any

import pytest
import ray

from dft_cluster.cluster.actors import ActorGroup, ActorTeam


class Harm:
    """Sends a signal to one rank, once, while a verb runs for the n-th time."""

    def __init__(
        self, verb: str, rank: str, how: signal.Signals = signal.SIGKILL, turn: int = 1, delay: float = 0.0
    ) -> None:
        self.verb, self.rank, self.how, self.turn, self.delay = verb, rank, how, turn, delay
        self.done: list[float] = []
        """When the signal was sent."""
        self._team: ActorTeam | None = None

    def install(self, patch: pytest.MonkeyPatch) -> "Harm":
        know, started = ActorTeam.know, ActorGroup._started

        def knows(team: ActorTeam) -> None:
            know(team)
            self._team = team

        def starts(group: ActorGroup, verb: Any, references: list[Any]) -> Any:
            waiting = started(group, verb, references)
            if verb.__name__ == self.verb and self.rank in group.names and not self.done:
                self.turn -= 1
                if self.turn == 0:
                    self.done.append(time.monotonic())
                    threading.Timer(self.delay, self._strike).start()
            return waiting

        patch.setattr(ActorTeam, "know", knows)
        patch.setattr(ActorGroup, "_started", starts)
        return self

    def _strike(self) -> None:
        assert self._team is not None
        _, number, _ = ray.get(self._team._who[self.rank])
        self.done[0] = time.monotonic()
        os.kill(number, self.how)
