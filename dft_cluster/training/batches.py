"""Which facts a rank takes through the model, and when: the same order for both groups, whatever the answers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dft_cluster.facts.layout import Example


@dataclass(frozen=True)
class Batch:
    """Right-padded examples; `targets` are the answers' tokens, one example after another, each of which should come out
    at one of `rows` and the position of `columns` beside it."""

    ids: Tensor
    mask: Tensor
    rows: Tensor
    columns: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> "Batch":
        return Batch(*(one.to(device) for one in (self.ids, self.mask, self.rows, self.columns, self.targets)))


@dataclass(frozen=True)
class Step:
    """One optimizer step of a rank: its micro-batches (None: take part with weight zero), and what the group sees."""

    micro: list[Batch | None]
    group_targets: int
    tokens: int


def collate(examples: Sequence[Example], pad: int) -> Batch:
    """Examples side by side; the logits asked for are those before each token of an answer, and no others."""
    width = max(len(e.ids) for e in examples)
    ids = torch.full((len(examples), width), pad)
    mask = torch.zeros((len(examples), width), dtype=torch.long)
    for row, example in enumerate(examples):
        size = len(example.ids)
        ids[row, :size] = torch.tensor(example.ids)
        mask[row, :size] = 1
    places = [(row, place) for row, example in enumerate(examples) for place in range(example.start, len(example.ids))]
    rows, columns = torch.tensor(places).unbind(1)
    return Batch(ids, mask, rows, columns - 1, ids[rows, columns])


def shuffled(count: int, seed: int, round_: int, epoch: int) -> list[int]:
    """The order of an epoch, a function of these numbers alone."""
    generator = torch.Generator().manual_seed(mixed(seed, round_, epoch))
    return torch.randperm(count, generator=generator).tolist()


def mixed(*numbers: int) -> int:
    """One seed out of several numbers (a 63-bit FNV-like walk; any other well-spread function would do)."""
    state = 0xCBF29CE484222325
    for number in numbers:
        state = ((state ^ (number & 0xFFFFFFFFFFFF)) * 0x100000001B3) & 0x7FFFFFFFFFFFFFFF
        state ^= state >> 29
    return state


def split(examples: Sequence[Example], tokens: int | None) -> list[list[Example]]:
    """Cuts a rank's share so that no part, padding counted, exceeds `tokens` (a longer example goes alone).

    Examples of like length go together, which leaves less to pad.
    """
    if tokens is None:
        return [list(examples)] if examples else []
    parts: list[list[Example]] = []
    for example in sorted(examples, key=lambda e: len(e.ids)):
        grown = [*parts[-1], example] if parts else [example]
        if not parts or len(grown) * len(example.ids) > tokens:
            parts.append([example])
        else:
            parts[-1] = grown
    return parts


def steps(
    examples: Sequence[Example],
    *,
    batch: int,
    epochs: int,
    rank: int,
    world: int,
    pad: int,
    seed: int,
    round_: int,
    tokens_per_batch: int | None = None,
) -> Iterator[Step]:
    """A rank's optimizer steps. Every rank of the group has the same number of micro-batches in each."""
    for epoch in range(epochs):
        order = shuffled(len(examples), seed, round_, epoch)
        for first in range(0, len(order), batch):
            chosen = [examples[i] for i in order[first : first + batch]]
            shares = [split(chosen[r::world], tokens_per_batch) for r in range(world)]
            micro: list[Batch | None] = [collate(part, pad) for part in shares[rank]]
            micro += [None] * (max(map(len, shares)) - len(micro))
            yield Step(micro, sum(e.targets for e in chosen), sum(len(e.ids) for e in chosen))
