"""A causal model's head, made to look at some positions alone: with short answers, the logits of all others would be most of
its work and of its memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass
class Looked:
    """Whether the head did look at the chosen positions."""

    there: bool = False


@contextmanager
def head_at(head: nn.Module | None, rows: Tensor, columns: Tensor) -> Iterator[Looked]:
    """Logits at these positions alone: they come out as [1, positions, vocabulary].

    A model that has no module for a head, or gives it anything but [examples, positions, width], gives all its logits.
    """
    looked = Looked()

    def choose(_module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not given or given[0].dim() != 3:
            return None
        looked.there = True
        return (given[0][rows, columns][None], *given[1:])

    if head is None:
        yield looked
        return
    hook = head.register_forward_pre_hook(choose)
    try:
        yield looked
    finally:
        hook.remove()
