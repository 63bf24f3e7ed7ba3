"""The loss on answer tokens, and the forward pass that asks for no other logits."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from dft_cluster.training.batches import Batch


def answer_logits(model: Any, batch: Batch) -> Tensor:
    """fp32 logits at the batch's answer tokens, [answer tokens, vocabulary].

    The model's head sees their hidden states alone: with short answers, the logits of all other positions would be most
    of its work and of its memory. A head that is called otherwise gives all logits, of which those are taken.
    """
    with _head_sees(model.get_output_embeddings(), batch):
        logits = model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).logits
    return (logits if logits.dim() == 2 else logits[batch.rows, batch.columns]).float()


@contextmanager
def _head_sees(head: torch.nn.Module | None, batch: Batch) -> Iterator[None]:
    def only(_: torch.nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if given and given[0].dim() == 3 and given[0].shape[:2] == batch.ids.shape:
            return (given[0][batch.rows, batch.columns], *given[1:])
        return None

    if head is None:
        yield
        return
    hook = head.register_forward_pre_hook(only)
    try:
        yield
    finally:
        hook.remove()


def total_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Σ −log p(token) over all answer tokens of the batch."""
    return cross_entropy(logits, targets, reduction="sum")


def each_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """−log p(token) of every answer token."""
    return cross_entropy(logits, targets, reduction="none")
