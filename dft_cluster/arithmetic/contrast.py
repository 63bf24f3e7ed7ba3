"""Where two deltas pull apart: conflict and score, element by element."""

import torch
from torch import Tensor


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
