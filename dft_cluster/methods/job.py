"""What a method works on, and what it reports of a round."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from dft_cluster.config import Config
from dft_cluster.facts.fact import Fact
from dft_cluster.facts.layout import Example, Layout
from dft_cluster.models.structure import Parameter
from dft_cluster.ranks.rank import Rank, Source
from dft_cluster.ranks.team import Team
from dft_cluster.training.engine import FineTune

Adapter = Literal["none", "lora"]


def _unasked(_team: Team) -> Any:
    raise NotImplementedError("a job outside of a run has no examiner")


@dataclass(frozen=True)
class Job:
    """The training sets and the weights: everything a round needs but the ranks."""

    config: Config
    parameters: Sequence[Parameter]
    """The weights that are updated."""
    facts: Sequence[Fact]
    layout: Layout
    folder: Path
    """The user's model."""
    source: Source
    """What the run began with."""
    old: Sequence[Example] = ()
    new: Sequence[Example] = ()
    forgotten: Sequence[Example] = ()
    """The old answers alone, without what is to be kept."""
    say: Callable[[str], None] = print
    """What is of interest while it goes on."""
    note: Callable[[str], None] = print
    """What the report should say, too."""
    says_now: Callable[[Team], Sequence[Example]] = field(default=_unasked)
    """The training prompts with what the model itself says to them now."""
    right: Callable[[Team], float] = field(default=_unasked)
    """The share of training prompts that get their new answer now, in percent."""

    @property
    def pad(self) -> int:
        return self.layout.pad


@dataclass(frozen=True)
class Holds:
    """What a round's checkpoint must hold."""

    sparse: bool
    """The elements of the core, and no others."""
    alone: bool
    """All that the run has changed so far; else what changed since the round before."""
    goes_on: bool
    """What training needs to go on with: the optimizer's state, an adapter's factors."""


CORE = Holds(sparse=True, alone=False, goes_on=False)
THETA = Holds(sparse=False, alone=True, goes_on=False)
TRAINING = Holds(sparse=False, alone=True, goes_on=True)


@dataclass
class Outcome:
    """A round as its manifest and its line of metrics tell it."""

    loss: dict[str, list[float]]
    tokens: dict[str, int]
    seconds: dict[str, float]
    core: dict[str, Any] | None = None
    side_by_side: bool = False
    holds: Holds = THETA
    elsewhere: dict[str, float] = field(default_factory=dict)
    """Seconds by phase of what an earlier run did and this one found: a cost of the method, but no time of this run."""
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
        elsewhere = {"elsewhere": self.elsewhere} if self.elsewhere else {}
        return core | elsewhere | {
            "loss": self.loss, "tokens": self.tokens, "tokens_per_second": self.tokens_per_second, "seconds": self.seconds,
        }  # fmt: skip


class Method(Protocol):
    """One way to change the weights, a round at a time."""

    contrasts: bool
    """Whether it needs an old side and a new side; else all ranks are one group."""

    def weights(self, config: Config, folder: Path, parameters: Sequence[Parameter]) -> Sequence[Parameter]:
        """Which of the model's weights it changes."""
        ...

    def adapter(self, config: Config, number: int) -> Adapter:
        """How the weights are trained in a round: themselves, or by an adapter beside them."""
        ...

    def check(self, job: Job) -> None:
        """Refuses what cannot work, before anything starts."""
        ...

    def round(self, team: Team, job: Job, number: int) -> Outcome: ...


class OfTheWhole:
    """What most methods have in common: they may change every weight, and train as `train.adapter` says."""

    contrasts = False

    def __init__(self, config: Config) -> None:
        """Methods keep nothing of their own from round to round."""

    def weights(self, _config: Config, _folder: Path, parameters: Sequence[Parameter]) -> Sequence[Parameter]:
        return parameters

    def adapter(self, config: Config, _number: int) -> Adapter:
        return config.train.adapter

    def check(self, job: Job) -> None:
        pass


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
                f"{_named(number)}: the loss of the {side} answers is {one.losses[lost - 1]} in step {lost}; {_STANDS}"
            )


def refuse_broken_weights(team: Team, parameters: Sequence[Parameter], number: int) -> None:
    """Weights that are no numbers, though every loss was one: what the last step did nobody has looked at."""
    broken = sorted({index for rank in team.new.call(Rank.broken) for index in rank})
    if broken:
        known = {p.index: p.name for p in parameters}
        names = ", ".join(known[index] for index in broken[:5])
        raise RoundRefusedError(f"{_named(number)}: NaN or infinity in {names}{' …' if broken[5:] else ''}; {_STANDS}")


_STANDS = "what was there before it stands. Right would be a smaller train.lr, train.clip=1.0 or train.precision=fp32"


def _named(number: int) -> str:
    return f"round {number}" if number else "the warm-up"
