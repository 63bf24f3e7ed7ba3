"""A rank's half of the delicate step: keep θ, meet the other delta, choose, apply.

Two buffers laid out like the masters are kept: `start`, θ at the round's start (under an adapter the masters
themselves, which stand still), and `other`, which is in turn the old delta, the scores (read as int32 keys), and the mark
of what was chosen. So the step costs 8 bytes an element.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dft_cluster.arithmetic import selection
from dft_cluster.arithmetic.contrast import SCORES, By, Mask, all_finite, lottery
from dft_cluster.arithmetic.selection import Bracket, Cut, Piece, Tally
from dft_cluster.config import LOOKS_AT_OLD
from dft_cluster.training import exchange
from dft_cluster.training.exchange import Pair, chunks, gather, scatter
from dft_cluster.training.theta import Theta

Old = Literal["now", "keep", "kept"]
"""Where the old delta comes from: learnt in this round; learnt and kept for later rounds; kept from an earlier one."""


@dataclass(frozen=True)
class Survey:
    """What a rank saw of the two deltas: conflicts by parameter, a sample of keys, parameters with NaN or infinity."""

    conflicts: dict[int, int]
    sampled: np.ndarray
    broken: list[int]


@dataclass(frozen=True)
class Addition:
    """What a round adds to θ: scale·Δnew at the core (or scale·(Δnew − Δold)), rest·Δnew at the other elements that have a
    score, and outside·Δnew at those that have none."""

    scale: float
    rest: float = 0.0
    outside: float = 0.0
    difference: bool = False

    @property
    def everywhere(self) -> bool:
        return self.rest > 0 or self.outside > 0


class Core:
    def __init__(self, theta: Theta, device: torch.device) -> None:
        self.theta, self.masters, self.fragments = theta, theta.masters, theta.fragments
        self.start = theta.start(device)
        self.other: list[Tensor] = []
        self.kept: list[Tensor] = []

    def _blank(self) -> list[Tensor]:
        return [torch.zeros_like(kept, pin_memory=kept.is_pinned()) for kept in self.start]

    def keep(self) -> None:
        """θ at the round's start."""
        for kept, master in zip(self.start, self.masters, strict=True):
            if kept is not master:
                kept.copy_(master)

    def back(self) -> None:
        """Masters ← θ at the round's start."""
        for kept, master in zip(self.start, self.masters, strict=True):
            if kept is not master:
                master.copy_(kept)

    def _delta(self, number: int, start: int, stop: int) -> Tensor:
        return self.theta.delta(self.start, number, start, stop)

    def shift(self, scale: float) -> None:
        """θ ← θ + scale·Δ, every element, Δ being what the fine-tune changed."""
        for number, start, stop in chunks(self.masters):
            before = self.start[number][start:stop]
            self.masters[number][start:stop].copy_(self._delta(number, start, stop).mul_(scale).add_(before))

    def hold(self) -> None:
        """One group: the old delta stays here while the same rank trains on the new answers."""
        self.other = self.other or self._blank()
        for number, start, stop in chunks(self.masters):
            self.other[number][start:stop].copy_(self._delta(number, start, stop))

    def send(self, pair: Pair) -> None:
        """Two groups, the old side: the delta goes over, and θ comes back to the round's start."""
        exchange.send_all(pair, (self._delta(*place) for place in chunks(self.start)))
        self.back()

    def keep_old(self) -> list[Tensor]:
        """Buffers for an old delta that is used again."""
        self.kept = self.kept or self._blank()
        return self.kept

    def survey(self, pair: Pair | None, sample: int, mask: Mask, by: By, seed: int, source: Old = "now") -> Survey:
        """The new side: scores of every element, in place of the old delta (received here where there is a pair)."""
        self.other = self.other or self._blank()
        broken: set[int] = set()
        score = SCORES[by][mask]
        if not LOOKS_AT_OLD[mask]:
            for buffer in self.other:
                buffer.zero_()
        arriving = chunks(self.other) if pair is None else exchange.receive_all(pair, self.other)
        for number, start, stop in arriving:
            block = selection.block_for(self.other[number].device)
            for first in range(start, stop, block):
                place = slice(first, min(first + block, stop))
                old = self.other[number][place]
                if source == "keep":
                    self.keep_old()[number][place].copy_(old)
                elif source == "kept":
                    old.copy_(self.kept[number][place])
                new = self._delta(number, place.start, place.stop)
                if not (all_finite(new) and all_finite(old)):
                    broken |= self._broken(number, first, new, old)
                score(new, old, out=old)
        if mask == "random":
            for f in self.fragments:
                lottery(f.of(self.other), seed, f.parameter, f.start)
        counts: dict[int, int] = {}
        for piece in self.pieces():
            counts[piece.parameter] = counts.get(piece.parameter, 0) + selection.count(piece.keys)
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
        by_tensor: bool,
        adding: Addition,
        pair: Pair | None,
    ) -> dict[int, int]:
        """θ ← θ + λ·core, here and, chunk by chunk, on the other side of the pair. Returns the elements kept by parameter.

        Of a conflict the difference Δnew − Δold is the score with the sign of Δnew.
        """
        kept = self._mark(cuts, quotas, by_tensor, adding.rest != adding.outside)
        sending = exchange.SparseSender(pair) if pair is not None and not adding.everywhere else None
        marks = self.marks()
        for number, start, stop in chunks(self.masters):
            mark = marks[number][start:stop]
            mask = mark > 0
            places = selection.positions(mask)
            now, before = self.masters[number][start:stop], self.start[number][start:stop]
            delta = self._delta(number, start, stop)
            core = gather(delta, places)
            if adding.difference:
                core = gather(self.other[number][start:stop], places).copysign_(core)
            moved = core.mul_(adding.scale).add_(gather(before, places))
            if adding.everywhere:
                scored = mark.to(delta.device) < 0
                delta.mul_(torch.where(scored, adding.rest, adding.outside))
                now.copy_(delta.add_(before))
            elif now.data_ptr() != before.data_ptr():
                now.copy_(before)
            scatter(now, places, moved)
            if sending is not None:
                sending.send(mask.cpu().numpy(), moved.cpu())
        if sending is not None:
            sending.finish()
        elif pair is not None:
            exchange.send_all(pair, (self.masters[n][first:stop] for n, first, stop in chunks(self.masters)))
        return kept

    def rescale(self, ratio: float) -> None:
        """θ ← start + ratio·(θ − start): after `apply`, and not under an adapter's own masters."""
        for number, start, stop in chunks(self.masters):
            now, before = (
                self.masters[number][start:stop],
                self.start[number][start:stop].to(self.masters[number].device),
            )
            now.sub_(before).mul_(ratio).add_(before)

    def _mark(
        self, cuts: Mapping[int, Cut], quotas: Mapping[tuple[int, int], int], by_tensor: bool, scored: bool
    ) -> dict[int, int]:
        """Turns the scores in `other` into the mark of the core: positive there, and 0 elsewhere; with `scored` negative
        where an element had a score, too."""
        kept: dict[int, int] = {}
        for piece in self.pieces():
            cut = cuts.get(piece.parameter if by_tensor else 0)
            quota = quotas.get((piece.parameter, piece.start), 0)
            for keys in piece.keys.split(selection.block_for(piece.keys.device)):
                core, quota = selection.chosen(keys, cut, quota)
                keys.copy_(torch.where(core, keys, -keys.sign() if scored else 0))
                kept[piece.parameter] = kept.get(piece.parameter, 0) + selection.count(core)
        return kept

    def marks(self) -> list[Tensor]:
        """After `apply`: positive where an element belongs to the core."""
        return [buffer.view(torch.int32) for buffer in self.other]

    def receive_core(self, pair: Pair, every: bool) -> None:
        """θ of the other side: `every` element, or those of the core."""
        if not every:
            exchange.receive_sparse(pair, self.masters)
            return
        for _ in exchange.receive_all(pair, self.masters):
            pass  # each chunk is in its place as it comes

    def _broken(self, number: int, start: int, new: Tensor, old: Tensor) -> set[int]:
        bad = (~(torch.isfinite(new) & torch.isfinite(old))).nonzero().squeeze(1) + start
        return {
            f.parameter for f in self.fragments
            if f.buffer == number and bool(((bad >= f.offset) & (bad < f.offset + f.length)).any())
        }  # fmt: skip
