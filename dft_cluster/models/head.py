"""A causal model's head, made to look at some positions alone: with short answers, the logits of all others would be most of
its work and of its memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def head_at(head: nn.Module | None, rows: Tensor, columns: Tensor) -> Iterator[None]:
    """Logits at these positions alone: they come out as [1, positions, vocabulary].

    A model that has no module for a head, or gives it anything but [examples, positions, width], gives all its logits.
    """

    def choose(_module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not given or given[0].dim() != 3:
            return None
        return (given[0][rows, columns][None], *given[1:])

    if head is None:
        yield
        return
    hook = head.register_forward_pre_hook(choose)
    try:
        yield
    finally:
        hook.remove()
