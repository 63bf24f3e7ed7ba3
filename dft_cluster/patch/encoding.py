"""Where a block was changed, in the fewest bytes: gaps between the places, a bitmap, or nothing (dense).

Gaps: with places p_0 < p_1 < … and p_-1 = -1, the gap of p_i is p_i - p_{i-1} - 1. A word of 8 or 16 bits
with all bits set (M = 255 or 65535) means "M further, no place here"; any other word g means "g + 1 further,
and there is a place". Every place is one more than the last at least, so that no words can name one twice.
"""

import enum
from dataclasses import dataclass
from typing import Any

import numpy as np

from dft_cluster.errors import InputError


class Kind(enum.IntEnum):
    NONE = 0
    GAPS8 = 1
    GAPS16 = 2
    BITMAP = 3
    DENSE = 4


WORD: dict[Kind, np.dtype[Any]] = {Kind.GAPS8: np.dtype("<u1"), Kind.GAPS16: np.dtype("<u2")}


@dataclass(frozen=True, slots=True)
class Places:
    """Which elements of one block have a value in the patch."""

    kind: Kind
    count: int
    index: np.ndarray
    """The encoded places, as bytes."""

    def positions(self, numel: int) -> np.ndarray:
        """The places in ascending order, all below `numel`; an `InputError` where the bytes say otherwise."""
        if self.kind == Kind.NONE:
            found = np.empty(0, np.int64)
        elif self.kind == Kind.DENSE:
            found = np.arange(numel)
        elif self.kind == Kind.BITMAP:
            found = np.flatnonzero(np.unpackbits(self.index, bitorder="little"))
        else:
            found = _from_gaps(self.index, WORD[self.kind])
        if len(found) != self.count or (len(found) and found[-1] >= numel):
            raise InputError(f"a patch's block names {len(found)} places, not {self.count} within {numel}: damaged")
        return found


def encode(positions: np.ndarray, numel: int, value_bytes: int, dense: bool) -> Places:
    """The shortest form for a block with these places, each of which costs `value_bytes` of values.

    `dense` allows values for unchanged elements too; without the old bits these could not be told apart.
    """
    count = len(positions)
    if count == 0:
        return Places(Kind.NONE, 0, np.empty(0, np.uint8))
    gaps = np.diff(positions, prepend=-1) - 1
    sizes = {kind: _gap_words(gaps, word) * word.itemsize for kind, word in WORD.items()}
    sizes[Kind.BITMAP] = (numel + 7) // 8
    if dense or count == numel:
        sizes[Kind.DENSE] = (numel - count) * value_bytes
    kind = min(sizes, key=lambda candidate: (sizes[candidate], candidate))
    if kind == Kind.DENSE:
        return Places(kind, numel, np.empty(0, np.uint8))
    if kind == Kind.BITMAP:
        bits = np.zeros(numel, bool)
        bits[positions] = True
        return Places(kind, count, np.packbits(bits, bitorder="little"))
    return Places(kind, count, _to_gaps(gaps, WORD[kind]))


def _escape(word: np.dtype[Any]) -> int:
    return int(np.iinfo(word).max)


def _gap_words(gaps: np.ndarray, word: np.dtype[Any]) -> int:
    return len(gaps) + int((gaps // _escape(word)).sum())


def _to_gaps(gaps: np.ndarray, word: np.dtype[Any]) -> np.ndarray:
    skips, rest = np.divmod(gaps, _escape(word))
    words = np.full(len(gaps) + int(skips.sum()), _escape(word), word)
    words[np.cumsum(skips + 1) - 1] = rest
    return words.view(np.uint8)


def _from_gaps(index: np.ndarray, word: np.dtype[Any]) -> np.ndarray:
    words = np.frombuffer(index.tobytes(), word)
    place = words != _escape(word)
    reached: np.ndarray = np.cumsum(words.astype(np.int64) + place)[place] - 1
    return reached
