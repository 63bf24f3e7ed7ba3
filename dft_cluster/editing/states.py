"""What a model holds at the subject's last token: the keys its down-projections read, and what a block gives."""

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor

from dft_cluster.editing.anatomy import Anatomy
from dft_cluster.editing.requests import Row

ROWS = 64


@torch.no_grad()
def read(anatomy: Anatomy, rows: Sequence[Row], layer: int, block: int | None = None) -> tuple[Tensor, Tensor]:
    """Row by row, in fp32: the key of `layer` [rows, inner], and what `block` gives (default: the same) [rows, hidden]."""
    block = layer if block is None else block
    keys = torch.empty(len(rows), anatomy.places[layer].inner)
    states = torch.empty(len(rows), anatomy.places[layer].hidden)
    order = sorted(range(len(rows)), key=lambda row: rows[row].at)
    with anatomy.frozen():
        for first in range(0, len(order), ROWS):
            chosen = order[first : first + ROWS]
            at = torch.tensor([rows[row].at for row in chosen], device=anatomy.device)
            with ExitStack() as stack:
                key = stack.enter_context(anatomy.catching(anatomy.downs[layer]))
                state = stack.enter_context(anatomy.catching(anatomy.blocks[block]))
                run_until(anatomy, [rows[row].subject.ids for row in chosen], max(layer, block))
            assert key.taken is not None and state.given is not None
            each = torch.arange(len(chosen), device=anatomy.device)
            keys[chosen] = key.taken[each, at].float().cpu()
            states[chosen] = state.given[each, at].float().cpu()
    return keys, states


def run_until(anatomy: Anatomy, texts: Sequence[Sequence[int]], block: int) -> Tensor:
    """Takes texts, right-padded, through the model up to a block; returns which tokens are real [texts, width]."""
    width = max(map(len, texts))
    ids = torch.zeros(len(texts), width, dtype=torch.long)
    real = torch.zeros(len(texts), width, dtype=torch.long)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.tensor(text)
        real[row, : len(text)] = 1
    ids, real = ids.to(anatomy.device), real.to(anatomy.device)
    positions = torch.arange(width, device=anatomy.device).expand_as(ids)
    anatomy.until(block, lambda: anatomy.forward(ids, real, positions))
    return real.bool()
