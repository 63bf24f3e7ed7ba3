"""One tensor's changes in several patches brought together, place by place."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dft_cluster.errors import InputError
from dft_cluster.patch.folder import as_bits, as_tensor

RULES = ("last", "sum", "largest")


@dataclass(frozen=True, slots=True)
class Values:
    """Ascending places in a block with the bits before and after; `old` is None where they were left out."""

    positions: np.ndarray
    old: np.ndarray | None
    new: np.ndarray

    def changed(self) -> "Values":
        """Without the places whose bits are the same before and after."""
        if self.old is None:
            return self
        kept = self.old != self.new
        return Values(self.positions[kept], self.old[kept], self.new[kept])


def stacked(lower: Values, upper: Values) -> Values:
    """First `lower`, then `upper` on top of it: the lower one's old bits, the upper one's new bits."""
    positions, below, above = _union([lower.positions, upper.positions])
    new = _spread(len(positions), [(below, lower.new), (above, upper.new)])
    if lower.old is None or upper.old is None:
        return Values(positions, None, new)
    return Values(positions, _spread(len(positions), [(above, upper.old), (below, lower.old)]), new)


def beside(parts: Sequence[Values], dtype: torch.dtype, rule: str | None) -> tuple[Values, int]:
    """Several patches of the same base in one, and how many elements they do not agree on.

    Where only one changes an element, or all that do give it the same bits, these are taken. Elsewhere, with
    b the base's value and v_i the patches' ones, computed in float64 and cast to the dtype:

    - `last`: the bits of the last patch that changes it
    - `sum`: b + Σ (v_i - b)
    - `largest`: the v_i with the largest |v_i - b|, the first of equals

    Without a rule the last one's bits stand there, for the caller to refuse.
    """
    positions, *where = _union([part.positions for part in parts])
    new = _spread(len(positions), [(at, part.new) for at, part in zip(where, parts, strict=True)])
    disputed = np.zeros(len(positions), bool)
    for at, part in zip(where, parts, strict=True):
        disputed[at] |= new[at] != part.new
    olds = [(at, part.old) for at, part in zip(where, parts, strict=True) if part.old is not None]
    if len(olds) < len(parts):
        if rule in ("sum", "largest"):
            raise InputError(f"the rule {rule!r} needs old bits in every patch, or the base itself")
        return Values(positions, None, new), int(disputed.sum())
    old = _spread(len(positions), olds)
    if not all(np.array_equal(old[at], values) for at, values in olds):
        raise InputError("patches of the same base state different old bits for the same elements")
    if rule in ("sum", "largest") and disputed.any():
        ruled = _ruled(parts, where, old, new, dtype, rule)
        new[disputed] = ruled[disputed]
        if not torch.isfinite(as_tensor(new[disputed], dtype).double()).all():
            raise InputError(f"the rule {rule!r} does not give finite numbers everywhere; use 'last'")
    return Values(positions, old, new), int(disputed.sum())


def _ruled(
    parts: Sequence[Values],
    where: Sequence[np.ndarray],
    old: np.ndarray,
    new: np.ndarray,
    dtype: torch.dtype,
    rule: str,
) -> np.ndarray:
    base, total = _floats(old, dtype), np.zeros(len(old))
    largest, winner = np.full(len(old), -1.0), new.copy()
    for at, part in zip(where, parts, strict=True):
        delta = _floats(part.new, dtype) - base[at]
        total[at] += delta
        larger = ~(np.abs(delta) <= largest[at])
        largest[at[larger]] = np.abs(delta[larger])
        winner[at[larger]] = part.new[larger]
    return as_bits(torch.from_numpy(base + total).to(dtype)) if rule == "sum" else winner


def _floats(bits: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    if not dtype.is_floating_point:
        raise InputError(f"{dtype} has no sums; use the rule 'last'")
    floats: np.ndarray = as_tensor(bits, dtype).double().numpy()
    return floats


def _union(places: Sequence[np.ndarray]) -> list[np.ndarray]:
    """All places, ascending, and for each of the given lists where its places lie among them."""
    union = np.unique(np.concatenate(places))
    return [union, *(np.searchsorted(union, one) for one in places)]


def _spread(size: int, values: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Values at their places, the later ones over the earlier ones."""
    spread = np.empty(size, values[0][1].dtype)
    for at, these in values:
        spread[at] = these
    return spread
