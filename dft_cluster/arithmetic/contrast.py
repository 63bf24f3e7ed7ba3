"""Where two deltas pull apart: conflict and score, element by element; and the scores that it is to be compared with."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Mask = Literal["conflict", "random", "new", "same"]
"""Which elements come into question."""
By = Literal["difference", "new"]
"""What ranks them."""


def contrast(new: Tensor, old: Tensor, out: Tensor | None = None) -> Tensor:
    """The fp32 score of every element: |Δnew − Δold| where the deltas point in opposite directions, else 0.

    A conflict needs both deltas non-zero and of different sign; signs are compared, never multiplied,
    since a product underflows. With p = max(Δnew, Δold) and q = −min(Δnew, Δold) that is p > 0 and q > 0, and
    then |Δnew − Δold| = p + q, to the bit. As a sum of two magnitudes it is never 0, so a zero score says
    "no conflict"; two huge deltas may add up to infinity, which ranks first.

    `out` may be `old` itself.
    """
    above = torch.maximum(new, old).clamp_min_(0)
    below = torch.minimum(new, old).neg_().clamp_min_(0)
    # min(p, q) > 0 as a mask of 32 equal bits: the sign of its negated bit pattern. (abs: a zero may carry a sign.)
    opposed = torch.minimum(above, below).abs_().view(torch.int32).neg_().bitwise_right_shift_(31)
    score = torch.add(above, below, out=out)
    score.view(torch.int32).bitwise_and_(opposed)
    return score


def all_finite(delta: Tensor) -> bool:
    """No NaN and no infinity (both reach the extremes)."""
    if not delta.numel():
        return True
    low, high = torch.aminmax(delta)
    return bool(torch.isfinite(low) & torch.isfinite(high))


def magnitude(new: Tensor, _old: Tensor, out: Tensor | None = None) -> Tensor:
    """|Δnew|, whatever the old delta does."""
    return torch.abs(new, out=out)


def accord(new: Tensor, old: Tensor, out: Tensor | None = None) -> Tensor:
    """|Δnew + Δold| where the two point the same way, else 0: the contrast with the old delta turned round."""
    return contrast(new, old.neg(), out=out)


def opposing(new: Tensor, old: Tensor, out: Tensor | None = None) -> Tensor:
    """|Δnew| where the two point in opposite directions, else 0."""
    elsewhere = contrast(new, old) == 0
    return torch.abs(new, out=out).masked_fill_(elsewhere, 0.0)


def agreeing(new: Tensor, old: Tensor, out: Tensor | None = None) -> Tensor:
    """|Δnew| where the two point the same way, else 0."""
    return opposing(new, old.neg(), out=out)


def lottery(out: Tensor, seed: int, parameter: int, start: int) -> None:
    """A positive score for every element that depends on the seed and the element's own place alone, however θ is cut up.

    Two rounds of a multiply-and-shift hash of the flat index; its upper 30 bits, never 0, are read as a float's.
    """
    for first in range(0, out.numel(), 1 << 18):
        part = out[first : first + (1 << 18)]
        state = torch.arange(start + first, start + first + part.numel(), device=out.device)
        state += (seed * 0x9E3779B1 + parameter * 0x85EBCA77) & 0x7FFFFFFF
        for factor in (0x2C1B3C6D, 0x297A2D39):
            state = ((state ^ (state >> 15)) * factor) & 0xFFFFFFFF
        part.view(torch.int32).copy_(((state ^ (state >> 15)) >> 2) + 1)


Score = Callable[..., Tensor]
SCORES: dict[By, dict[Mask, Score]] = {
    "difference": {"conflict": contrast, "same": accord, "new": magnitude, "random": magnitude},
    "new": {"conflict": opposing, "same": agreeing, "new": magnitude, "random": magnitude},
}
