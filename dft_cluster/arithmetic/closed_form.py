"""Edits of one linear map in closed form: what to add to W so that chosen keys give chosen values, and others stay.

C = E[k kᵀ] is the second moment of the keys that W sees in ordinary text. All is solved in float64, by Cholesky.
"""

import torch
from torch import Tensor

from dft_cluster.errors import InputError


def rank_one(given: Tensor, covariance: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """ROME (Meng et al. 2022): W + Λ(C⁻¹k*)ᵀ with Λ = (v* − W k*) / ((C⁻¹k*)ᵀ k*), so that W' k* = v*.

    Of all changes that do so it disturbs E‖W'k − Wk‖² least. `given` is W k* [out]; returned are Λ [out] and C⁻¹k* [in].
    """
    key = key.double()
    direction = solve(covariance, key[:, None])[:, 0]
    left = (value.double() - given.double()) / (direction @ key)
    return left, direction


def spread(residual: Tensor, layer: int, last: int) -> Tensor:
    """MEMIT's rˡ = (z − hᴸ) / (L − l + 1): each layer takes an equal share of what is still missing."""
    return residual / (last - layer + 1)


def closed_form(covariance: Tensor, keys: Tensor) -> Tensor:
    """MEMIT (Meng et al. 2023): Δ = R Kᵀ(C + K Kᵀ)⁻¹ = R Xᵀ with X = (C + K Kᵀ)⁻¹K; `covariance` carries λ.

    `keys` is K, [in, facts]; R, [out, facts], has no part in X.
    """
    keys = keys.double()
    return solve(covariance.double() + keys @ keys.T, keys)


def solve(covariance: Tensor, right: Tensor) -> Tensor:
    """C⁻¹·right for a positive definite C."""
    factor, failed = torch.linalg.cholesky_ex(covariance.double())
    if int(failed):
        raise InputError(
            f"the covariance of the keys ({covariance.shape[0]} wide) is singular: its leading minor of order {int(failed)} is "
            "not positive. It comes from too little text; right would be a text of more tokens than that width "
            "(editing.covariance, editing.covariance_samples)"
        )
    return torch.cholesky_solve(right.double(), factor)
