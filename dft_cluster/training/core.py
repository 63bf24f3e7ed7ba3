"""A rank's half of the delicate step: keep θ, meet the other delta, choose, apply.

Two buffers laid out like the masters are kept: `start`, θ at the round's start, and `other`, which is in turn the old
delta, the scores (read as int32 keys), and the mark of what was chosen. So the step costs 8 bytes an element.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dft_cluster.arithmetic import selection
from dft_cluster.arithmetic.contrast import all_finite, contrast
from dft_cluster.arithmetic.selection import Bracket, Cut, Piece, Tally
from dft_cluster.training import exchange
from dft_cluster.training.exchange import Pair, chunks, gather, scatter
from dft_cluster.training.shards import Fragment


@dataclass(frozen=True)
class Survey:
    """What a rank saw of the two deltas: conflicts by parameter, a sample of keys, parameters with NaN or infinity."""

    conflicts: dict[int, int]
    sampled: np.ndarray
    broken: list[int]


class Core:
    def __init__(self, masters: Sequence[Tensor], fragments: Sequence[Fragment], device: torch.device) -> None:
        self.masters, self.fragments = list(masters), list(fragments)
        pinned = device.type == "cpu" and torch.cuda.is_available()
        self.start = [torch.empty(m.numel(), device=device, pin_memory=pinned) for m in masters]
        self.other: list[Tensor] = []
        self._blank = lambda: [torch.zeros(m.numel(), device=device, pin_memory=pinned) for m in masters]

    def keep(self) -> None:
        """θ at the round's start."""
        for kept, master in zip(self.start, self.masters, strict=True):
            kept.copy_(master)

    def back(self) -> None:
        """Masters ← θ at the round's start."""
        for kept, master in zip(self.start, self.masters, strict=True):
            master.copy_(kept)

    def hold(self) -> None:
        """One group: the old delta stays here while the same rank trains on the new answers."""
        self.other = self.other or self._blank()
        for number, start, stop in chunks(self.masters):
            held = self.other[number][start:stop]
            held.copy_(self.masters[number][start:stop]).sub_(self.start[number][start:stop])

    def send(self, pair: Pair) -> None:
        """Two groups, the old side: the delta goes over, and θ comes back to the round's start."""
        exchange.send_difference(pair, self.masters, self.start)
        self.back()

    def survey(self, pair: Pair | None, sample: int) -> Survey:
        """The new side: scores of every element, in place of the old delta (received here where there is a pair)."""
        self.other = self.other or self._blank()
        broken: set[int] = set()
        arriving = chunks(self.other) if pair is None else exchange.receive_all(pair, self.other)
        for number, start, stop in arriving:
            for first in range(start, stop, selection.BLOCK):  # small enough for a core's cache
                place = slice(first, min(first + selection.BLOCK, stop))
                old = self.other[number][place]
                new = torch.sub(self.masters[number][place].to(old.device), self.start[number][place])
                if not (all_finite(new) and all_finite(old)):
                    broken |= self._broken(number, first, new, old)
                contrast(new, old, out=old)
        counts: dict[int, int] = {}
        for piece in self.pieces():
            counts[piece.parameter] = counts.get(piece.parameter, 0) + int(np.count_nonzero(piece.keys.cpu().numpy()))
        return Survey(counts, selection.sample([p.keys for p in self.pieces()], sample), sorted(broken))

    def pieces(self) -> list[Piece]:
        """The scores as keys, fragment by fragment."""
        return [Piece(f.parameter, f.start, f.of(self.other).view(torch.int32)) for f in self.fragments]

    def tally(self, brackets: Mapping[int, Bracket], by_tensor: bool) -> dict[int, Tally]:
        """One counting pass for every open bracket; group 0 is the whole shard, else a parameter's number."""
        pieces = self.pieces()
        return {
            group: selection.tally((p.keys for p in pieces if not by_tensor or p.parameter == group), bracket)
            for group, bracket in brackets.items()
        }

    def ties(self, cuts: Mapping[int, Cut], by_tensor: bool) -> list[tuple[int, int, int]]:
        """(parameter, start, keys at the threshold) of every piece whose cut leaves some of its ties out."""
        return [
            (p.parameter, p.start, selection.count_ties(p.keys, cut))
            for p in self.pieces()
            if (cut := cuts.get(p.parameter if by_tensor else 0)) and cut.ties is not None
        ]

    def apply(
        self,
        cuts: Mapping[int, Cut],
        quotas: Mapping[tuple[int, int], int],
        scale: float,
        by_tensor: bool,
        pair: Pair | None,
    ) -> dict[int, int]:
        """θ ← θ + λ·core, here and, chunk by chunk, on the other side of the pair. Returns the elements kept by parameter."""
        kept = self._mark(cuts, quotas, by_tensor)
        sending = exchange.SparseSender(pair) if pair is not None else None
        marks = self.marks()
        for number, start, stop in chunks(self.masters):
            mask = marks[number][start:stop].cpu().numpy() != 0
            places = np.flatnonzero(mask)
            now, before = self.masters[number][start:stop], self.start[number][start:stop]
            there = gather(before, places)
            moved = gather(now, places).to(there.device).sub_(there).mul_(scale).add_(there)
            now.copy_(before)
            scatter(now, places, moved)
            if sending is not None:
                sending.send(mask, moved.cpu())
        if sending is not None:
            sending.finish()
        return kept

    def _mark(self, cuts: Mapping[int, Cut], quotas: Mapping[tuple[int, int], int], by_tensor: bool) -> dict[int, int]:
        """Turns the scores in `other` into the mark of the core: 1 for an element of it, 0 for any other."""
        kept: dict[int, int] = {}
        for piece in self.pieces():
            cut = cuts.get(piece.parameter if by_tensor else 0)
            quota = quotas.get((piece.parameter, piece.start), 0)
            for keys in piece.keys.split(selection.BLOCK):
                mask, quota = selection.chosen(keys.cpu().numpy(), cut, quota)
                keys.copy_(torch.from_numpy(mask.astype(np.int32)))
                kept[piece.parameter] = kept.get(piece.parameter, 0) + int(np.count_nonzero(mask))
        return kept

    def marks(self) -> list[Tensor]:
        """After `apply`: not 0 where an element belongs to the core."""
        return [buffer.view(torch.int32) for buffer in self.other]

    def receive_core(self, pair: Pair) -> None:
        exchange.receive_sparse(pair, self.masters)

    def _broken(self, number: int, start: int, new: Tensor, old: Tensor) -> set[int]:
        bad = (~(torch.isfinite(new) & torch.isfinite(old))).nonzero().squeeze(1) + start
        return {
            f.parameter for f in self.fragments
            if f.buffer == number and bool(((bad >= f.offset) & (bad < f.offset + f.length)).any())
        }  # fmt: skip
