"""The loss on answer tokens, and the forward pass that asks for no other logits."""

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from dft_cluster.training.batches import IGNORE, Batch


def answer_logits(model: Any, batch: Batch, keeps: bool) -> Tensor:
    """fp32 logits at the batch's positions, [examples, positions, vocabulary].

    Most models can leave out the other positions (`keeps`), which for short answers is most of the head's work.
    """
    chosen = {"logits_to_keep": batch.positions} if keeps else {}
    logits = model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False, **chosen).logits
    return (logits if keeps else logits[:, batch.positions]).float()


def can_keep(model: Any) -> bool:
    return "logits_to_keep" in inspect.signature(model.forward).parameters


def total_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Σ −log p(token) over all answer tokens of the batch."""
    return cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum")


def each_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Σ −log p(token) by example."""
    nll = cross_entropy(logits.transpose(1, 2), targets, ignore_index=IGNORE, reduction="none")
    return torch.sum(nll, dim=1)
