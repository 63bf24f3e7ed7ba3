"""What a method works on, and what it reports of a round."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from dft_cluster.config import Config
from dft_cluster.facts.layout import Example
from dft_cluster.models.structure import Parameter
from dft_cluster.ranks.team import Team
from dft_cluster.training.engine import FineTune


@dataclass(frozen=True)
class Job:
    """The training sets and the weights: everything a round needs but the ranks."""

    config: Config
    parameters: Sequence[Parameter]
    old: Sequence[Example]
    new: Sequence[Example]
    pad: int


@dataclass
class Outcome:
    """A round as its manifest and its line of metrics tell it."""

    loss: dict[str, list[float]]
    tokens: dict[str, int]
    seconds: dict[str, float]
    core: dict[str, Any] | None = None
    side_by_side: bool = False
    tokens_per_second: dict[str, float] = field(init=False)

    def __post_init__(self) -> None:
        self.tokens_per_second = {name: count / max(self.seconds[name], 1e-9) for name, count in self.tokens.items()}

    @property
    def training(self) -> float:
        """Wall seconds of the fine-tunes: side by side, or one after the other."""
        spent = [self.seconds[name] for name in self.tokens]
        return max(spent) if self.side_by_side else sum(spent)

    def line(self) -> dict[str, Any]:
        core = {"core": self.core} if self.core is not None else {}
        return core | {
            "loss": self.loss, "tokens": self.tokens, "tokens_per_second": self.tokens_per_second, "seconds": self.seconds,
        }  # fmt: skip


class Method(Protocol):
    """One way to change the weights, a round at a time."""

    contrasts: bool
    """Whether it needs an old side and a new side; else all ranks are one group."""
    alone: bool
    """Whether a round's checkpoint must hold all of θ (else only what the round changed)."""

    def check(self, job: Job) -> None:
        """Refuses what cannot work, before anything starts."""
        ...

    def round(self, team: Team, job: Job, number: int) -> Outcome: ...


class RunFailedError(RuntimeError):
    """A run that had begun cannot go on; its last finished round is safe."""


class RoundRefusedError(RunFailedError):
    """A round cannot be done as asked (a NaN, nothing to select); the round before it stands."""


def refuse_lost_losses(number: int, **tuned: FineTune) -> None:
    """A loss that is no number: DeepSpeed then skips steps, and what comes out was not trained."""
    for side, one in tuned.items():
        lost = next((step for step, loss in enumerate(one.losses, 1) if not math.isfinite(loss)), None)
        if lost is not None:
            raise RoundRefusedError(
                f"round {number}: the loss of the {side} answers is {one.losses[lost - 1]} in step {lost}; the round before it "
                "stands. Right would be a smaller train.lr, train.clip=1.0 or train.precision=fp32"
            )
