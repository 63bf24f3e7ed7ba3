"""The exact global top k over any number of shards, in a few passes and constant memory.

Scores are non-negative fp32, and such floats sort like their bit patterns read as integers: a score is handled
as its int32 *key*, and key 0 (no conflict) is never chosen. The search keeps a bracket [low, high] that holds
the k-th largest key. Every pass asks each shard for a tally (how many keys lie above the bracket, and a
histogram of those inside), adds the tallies and narrows the bracket, until it is one key wide. A sample of the keys
makes the first bracket narrow, so that one pass nearly always settles it; a sample that misleads costs a
pass and never exactness. Only tallies travel: what is chosen is the same for any number of shards.
"""

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from math import floor, sqrt
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

HIGHEST = 0x7F800000  # +infinity, the largest key there is
BINS = 1 << 18
BLOCK = 1 << 18  # keys looked at together: few enough for a core's cache
ON_DEVICE = 1 << 21  # the same on an accelerator, where every look costs a launch
CANDIDATES = 1 << 19  # keys inside the bracket, gathered before they are counted
SAMPLE = 1 << 19


class Bracket(NamedTuple):
    """The keys that may hold the threshold, both ends included, cut into bins of 2^shift keys."""

    low: int
    high: int
    shift: int

    @classmethod
    def around(cls, low: int, high: int, bins: int = BINS) -> "Bracket":
        return cls(low, high, max(0, (high - low).bit_length() - (bins.bit_length() - 1)))

    @property
    def bins(self) -> int:
        return ((self.high - self.low) >> self.shift) + 1


@dataclass(frozen=True)
class Piece:
    """A contiguous run of one parameter's keys, as a shard holds them."""

    parameter: int
    start: int
    keys: Tensor


@dataclass(frozen=True)
class Tally:
    """What a shard saw: keys above the bracket, and those inside by bin."""

    above: int
    inside: np.ndarray

    @classmethod
    def total(cls, tallies: Iterable["Tally"]) -> "Tally":
        parts = list(tallies)
        return cls(sum(part.above for part in parts), np.sum([part.inside for part in parts], axis=0))


@dataclass(frozen=True)
class Cut:
    """Keep keys above `threshold`, and of those equal to it the first `ties` (all of them: None).

    "First" is by (parameter, flat index). Threshold 0 with no ties keeps every conflict.
    """

    threshold: int
    ties: int | None = None

    @property
    def score(self) -> float:
        """The threshold as the score it stands for."""
        return float(np.array([self.threshold], np.int32).view(np.float32)[0])


def count_to_keep(top: Decimal, elements: int) -> int:
    """k = floor(T·N), exactly; T is the decimal that was written, not its nearest float."""
    return floor(Fraction(top) * elements)


def tally(blocks: Iterable[Tensor], bracket: Bracket) -> Tally:
    """One pass over a shard's keys."""
    above, inside = 0, np.zeros(bracket.bins, np.int64)
    waiting: list[np.ndarray] = []
    held = 0
    for block in _blocks(blocks):
        over, within = _sift(block, bracket)
        above += over
        waiting.append(within)
        held += len(within)
        if held >= CANDIDATES:
            _count(waiting, bracket, inside)
            held = 0
    _count(waiting, bracket, inside)
    return Tally(above, inside)


def _blocks(tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    for tensor in tensors:
        yield from tensor.split(block_for(tensor.device))


def block_for(device: torch.device) -> int:
    """How many keys are looked at together."""
    return BLOCK if device.type == "cpu" else ON_DEVICE


def _compared(keys: Tensor, how: Callable[[Any, int], Any], key: int) -> Tensor:
    """On a CPU numpy compares several times faster than torch."""
    return torch.from_numpy(how(keys.numpy(), key)) if keys.device.type == "cpu" else how(keys, key)


def count(flags: Tensor) -> int:
    """How many are not 0."""
    return int(np.count_nonzero(flags.numpy()) if flags.device.type == "cpu" else torch.count_nonzero(flags))


def positions(mask: Tensor) -> Tensor:
    """Where a mask is set, in order."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.nonzero().squeeze(1)


def _sift(keys: Tensor, bracket: Bracket) -> tuple[int, np.ndarray]:
    """How many keys lie above the bracket, and those inside it."""
    if keys.device.type != "cpu":
        high_enough = keys[keys >= bracket.low]
        within = high_enough[high_enough <= bracket.high]
        return high_enough.numel() - within.numel(), within.cpu().numpy()
    values = keys.numpy()  # numpy compares and counts several times faster here than torch
    at_least, over = values >= bracket.low, values > bracket.high
    above = int(np.count_nonzero(over))
    return above, values[np.logical_xor(at_least, over, out=over)]


def _count(waiting: list[np.ndarray], bracket: Bracket, inside: np.ndarray) -> None:
    if waiting:
        bins = (np.concatenate(waiting) - np.int32(bracket.low)) >> bracket.shift
        inside += np.bincount(bins, minlength=len(inside))
        waiting.clear()


def sample(blocks: Sequence[Tensor], size: int) -> np.ndarray:
    """About `size` keys, evenly spaced over a shard."""
    total = sum(block.numel() for block in blocks)
    stride = max(1, total // max(1, size))
    picked, first = [np.zeros(0, np.int32)], 0
    for block in blocks:
        picked.append(block[first::stride].cpu().numpy())
        first = (first - block.numel()) % stride
    return np.concatenate(picked)


def bracket_from(sampled: np.ndarray, share: float, bins: int = BINS) -> Bracket:
    """A bracket that very likely holds the key at quantile `share` from the top.

    The rank of a sample's quantile has standard deviation √(p(1−p)/m); five of them to either side.
    """
    size = len(sampled)
    if size < 1024:
        return Bracket.around(1, HIGHEST, bins)
    ordered = np.sort(sampled)
    spread = 5 * sqrt(share * (1 - share) / size) + 2 / size
    first, last = size - 1 - floor((share - spread) * size), size - 1 - floor((share + spread) * size)
    high = int(ordered[first]) if first < size else HIGHEST
    low = int(ordered[last]) if last >= 0 else 1
    return Bracket.around(max(low, 1), max(high, 1), bins)


def find_cuts(
    counts: Mapping[int, int],
    ask: Callable[[Mapping[int, Bracket]], Mapping[int, Tally]],
    starts: Mapping[int, Bracket] | None = None,
    bins: int = BINS,
) -> dict[int, Cut]:
    """For each group of keys (the whole model, or a tensor) the cut that keeps exactly its `counts` largest.

    `ask` makes one pass for the brackets still open and adds up each tally over all shards. Where a group has
    fewer conflicts than its count, all of them are kept.
    """
    cuts: dict[int, Cut] = {}
    brackets = {group: (starts or {}).get(group, Bracket.around(1, HIGHEST, bins)) for group in counts}
    while brackets:
        tallies = ask(brackets)
        narrowed = {group: _narrow(counts[group], brackets[group], tallies[group], bins) for group in brackets}
        cuts |= {group: found for group, found in narrowed.items() if isinstance(found, Cut)}
        brackets = {group: found for group, found in narrowed.items() if isinstance(found, Bracket)}
    return cuts


def _narrow(k: int, bracket: Bracket, seen: Tally, bins: int) -> Cut | Bracket:
    low, high, shift = bracket
    if seen.above >= k:
        return Bracket.around(high + 1, HIGHEST, bins)
    from_top = seen.above + np.cumsum(seen.inside[::-1])
    if from_top[-1] < k:
        return Cut(0, 0) if low == 1 else Bracket.around(1, low - 1, bins)
    place = int(np.searchsorted(from_top, k))
    bin_ = len(seen.inside) - 1 - place
    if shift:
        return Bracket.around(low + (bin_ << shift), min(high, low + ((bin_ + 1) << shift) - 1), bins)
    at_threshold = int(seen.inside[bin_])
    ties = k - (int(from_top[place]) - at_threshold)
    return Cut(low + bin_, None if ties == at_threshold else ties)


def allot(ties: int, equal: Iterable[tuple[int, int, int]]) -> dict[tuple[int, int], int]:
    """How many ties each piece keeps, from (parameter, start, number of ties there) of every piece of every shard."""
    quotas: dict[tuple[int, int], int] = {}
    for parameter, start, here in sorted(equal):
        quotas[parameter, start] = min(here, ties)
        ties -= quotas[parameter, start]
    return quotas


def chosen(keys: Tensor, cut: Cut | None, quota: int) -> tuple[Tensor, int]:
    """The mask of a block of keys, and how many ties may still be taken after it (no cut: nothing is chosen)."""
    if cut is None:
        return torch.zeros_like(keys, dtype=torch.bool), quota
    if cut.ties is None:
        return _compared(keys, operator.ge, cut.threshold), quota
    mask = _compared(keys, operator.gt, cut.threshold)
    if quota:
        equal = positions(_compared(keys, operator.eq, cut.threshold))[:quota]
        mask[equal] = True
        quota -= len(equal)
    return mask, quota


def select(shards: Sequence[Sequence[Piece]], k: int) -> list[list[Tensor]]:
    """The masks of the global top k over shards that lie in one process: the whole search in eight lines."""
    elements = sum(piece.keys.numel() for shard in shards for piece in shard)
    blocks = [[piece.keys for piece in shard] for shard in shards]
    sampled = np.concatenate([sample(shard, SAMPLE // len(shards)) for shard in blocks])

    def ask(brackets: Mapping[int, Bracket]) -> dict[int, Tally]:
        return {0: Tally.total(tally(shard, brackets[0]) for shard in blocks)}

    cut = find_cuts({0: k}, ask, {0: bracket_from(sampled, k / elements)})[0]
    quotas = allot(cut.ties or 0, ((p.parameter, p.start, count_ties(p.keys, cut)) for s in shards for p in s))
    return [[chosen(p.keys, cut, quotas[p.parameter, p.start])[0] for p in shard] for shard in shards]


def count_ties(keys: Tensor, cut: Cut) -> int:
    if not cut.threshold:
        return 0
    return sum(count(_compared(block, operator.eq, cut.threshold)) for block in _blocks([keys]))
