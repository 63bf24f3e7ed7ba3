"""Which facts a rank takes through the model, and when: the same order for both groups, whatever the answers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dft_cluster.facts.layout import Example

IGNORE = -100


@dataclass(frozen=True)
class Batch:
    """Right-padded examples; `positions` are the places whose logits matter, `targets` what they should say."""

    ids: Tensor
    mask: Tensor
    positions: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> "Batch":
        return Batch(self.ids.to(device), self.mask.to(device), self.positions.to(device), self.targets.to(device))


@dataclass(frozen=True)
class Step:
    """One optimizer step of a rank: its micro-batches (None: take part with weight zero), and what the group sees."""

    micro: list[Batch | None]
    group_targets: int
    tokens: int


def collate(examples: Sequence[Example], pad: int) -> Batch:
    """Examples side by side. Only positions from the earliest answer on are asked for their logits."""
    width = max(len(e.ids) for e in examples)
    first = min(e.start for e in examples) - 1
    ids = torch.full((len(examples), width), pad)
    mask = torch.zeros((len(examples), width), dtype=torch.long)
    targets = torch.full((len(examples), width - 1 - first), IGNORE)
    for row, example in enumerate(examples):
        size = len(example.ids)
        ids[row, :size] = torch.tensor(example.ids)
        mask[row, :size] = 1
        targets[row, example.start - 1 - first : size - 1 - first] = torch.tensor(example.ids[example.start :])
    return Batch(ids, mask, torch.arange(first, width - 1), targets)


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
