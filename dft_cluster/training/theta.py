"""θ as a rank holds it: fp32 masters of its share of the weights being updated, and what a fine-tune changed in them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dft_cluster.training import shards
from dft_cluster.training.shards import Fragment


class Theta(Protocol):
    masters: list[Tensor]
    """Flat fp32 buffers; padding, if any, belongs to no fragment."""
    fragments: list[Fragment]
    """Which elements of which parameter lie where in `masters`."""

    def start(self, device: torch.device) -> list[Tensor]:
        """Buffers for θ of a round's start, laid out like the masters; the masters themselves where training leaves
        them alone."""
        ...

    def delta(self, start: Sequence[Tensor], number: int, first: int, stop: int) -> Tensor:
        """What training changed in elements `first` to `stop` of buffer `number`, on the device of `start`."""
        ...

    def merge(self) -> None:
        """Puts what was trained beside the masters into them."""
        ...

    def push(self) -> None:
        """Working weights ← cast masters, on every rank (a collective call)."""
        ...


class Whole:
    """The weights themselves are trained: the masters are the optimizer's own."""

    def __init__(self, optimizer: Any, stage: int, fragments: list[Fragment]) -> None:
        self._optimizer, self._stage = optimizer, stage
        self.masters: list[Tensor] = [m.data for m in shards.masters(optimizer, stage)]
        self.fragments = fragments

    def start(self, device: torch.device) -> list[Tensor]:
        pinned = device.type == "cpu" and torch.cuda.is_available()
        return [torch.empty(m.numel(), device=device, pin_memory=pinned) for m in self.masters]

    def delta(self, start: Sequence[Tensor], number: int, first: int, stop: int) -> Tensor:
        before = start[number][first:stop]
        return torch.sub(self.masters[number][first:stop].to(before.device), before)

    def merge(self) -> None:
        """Nothing lies beside the masters."""

    def push(self) -> None:
        shards.push(self._optimizer, self._stage)


@torch.no_grad()
def write_weight(weight: nn.Parameter, values: Tensor, stage: int) -> None:
    """Sets a weight that is not trained, on every rank."""
    with _whole(weight, stage):
        weight.copy_(values)


def round_weight(weight: nn.Parameter, dtype: torch.dtype, stage: int) -> None:
    """Leaves of a weight that is not trained what `dtype` can hold, on every rank."""
    with _whole(weight, stage):
        weight.copy_(weight.to(dtype))


@contextmanager
def _whole(weight: nn.Parameter, stage: int) -> Iterator[None]:
    """Under ZeRO-3 a weight is cut up: here it is whole, and cut again with what was written into it."""
    if stage < 3:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([weight], modifier_rank=0):
        yield
