"""The loss on answer tokens, and the forward pass that asks for no other logits."""

from typing import Any

from torch import Tensor
from torch.nn.functional import cross_entropy

from dft_cluster.models.head import head_at
from dft_cluster.training.batches import Batch


def answer_logits(model: Any, batch: Batch) -> Tensor:
    """fp32 logits at the batch's answer tokens, [answer tokens, vocabulary]."""
    with head_at(model.get_output_embeddings(), batch.rows, batch.columns) as looked:
        logits = model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).logits
    return (logits[0] if looked.there else logits[batch.rows, batch.columns]).float()


def total_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Σ −log p(token) over all answer tokens of the batch."""
    return cross_entropy(logits, targets, reduction="sum")


def each_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """−log p(token) of every answer token."""
    return cross_entropy(logits, targets, reduction="none")
