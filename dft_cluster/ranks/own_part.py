"""A rank's part of a checkpoint: what it writes of a round, and how a weight that stands still is found again in such parts."""

from collections.abc import Mapping, Sequence
from functools import partial

from torch import Tensor

from dft_cluster.models.structure import Parameter
from dft_cluster.patch.folder import Folder
from dft_cluster.runs import parts
from dft_cluster.runs.parts import Part, Stored, Written
from dft_cluster.runs.patience import patiently
from dft_cluster.runs.storage import Storage
from dft_cluster.training.core import Core
from dft_cluster.training.engine import Engine
from dft_cluster.training.shards import Fragment
from dft_cluster.training.theta import Theta


@patiently
def write(uri: str, name: str, fragments: Sequence[Stored]) -> Written:
    with Storage(uri).writer(name) as stream:
        return parts.write(stream, name, fragments)


def of_core(engine: Engine, core: Core) -> list[Stored]:
    """The core's elements alone, and an old delta that is used again."""
    marks, kept = core.marks(), core.kept
    return [
        Stored(f.parameter, f.start, f.of(engine.masters), f.of(marks), {"old": f.of(kept)} if kept else {})
        for f in engine.fragments
    ]


def of_theta(engine: Engine, goes_on: bool, kept: Sequence[Tensor]) -> list[Stored]:
    """θ with an adapter's product in it, and an old delta that is used again; if training goes on, the optimizer's state and the
    adapter's own factors."""
    theta, trained = engine.theta, engine.trained
    moments = engine.moments() if goes_on else []
    beside = trained.fragments is not theta.fragments
    stored = [
        Stored(
            f.parameter,
            f.start,
            f.of(theta.masters),
            None,
            (_state(f, moments[f.buffer]) if goes_on and not beside else {}) | ({"old": f.of(kept)} if kept else {}),
            partial(_product, theta, f) if beside else None,
        )
        for f in theta.fragments
    ]
    if beside and goes_on:
        stored += [
            Stored(f.parameter, f.start, f.of(trained.masters), None, _state(f, moments[f.buffer]))
            for f in trained.fragments
        ]
    return stored


def _product(theta: Theta, fragment: Fragment, first: int, stop: int) -> Tensor:
    """An adapter's, of a fragment's elements `first` to `stop`."""
    return theta.delta(theta.masters, fragment.buffer, fragment.offset + first, fragment.offset + stop)


def _state(fragment: Fragment, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An optimizer's state of one fragment: its moments, and the step as one number."""
    return {
        name: value.reshape(1) if value.numel() == 1 else value[fragment.offset : fragment.offset + fragment.length]
        for name, value in state.items()
    }


class Standing:
    """A weight that is not trained here, as the rounds before left it (None: as the source has it)."""

    def __init__(self, parameter: Parameter, source: Folder) -> None:
        self.parameter, self._source = parameter, source
        self.values: Tensor | None = None

    def lay(self, part: Part) -> None:
        if part.holds(self.parameter.index):
            if self.values is None:
                self.values = self._source.flat(self.parameter.saved, 0, self.parameter.numel).float()
            part.overlay(self.parameter.index, 0, self.values)
