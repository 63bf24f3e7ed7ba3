"""ROME's and MEMIT's defining equations, against direct computation in float64."""

import pytest
import torch

from dft_cluster.arithmetic.closed_form import closed_form, rank_one, solve, spread
from dft_cluster.errors import InputError


def covariance(width: int, seed: int = 0) -> torch.Tensor:
    keys = torch.randn(4 * width, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return keys.T @ keys / (4 * width)


def test_rank_one_gives_the_value_and_disturbs_least() -> None:
    torch.manual_seed(0)
    weight, key, value = torch.randn(5, 8), torch.randn(8), torch.randn(5)
    second = covariance(8)
    left, right = rank_one(weight.double() @ key.double(), second, key, value)
    change = left[:, None] * right
    torch.testing.assert_close((weight.double() + change) @ key.double(), value.double(), rtol=1e-10, atol=1e-10)
    assert torch.linalg.matrix_rank(change) == 1

    def disturbed(other: torch.Tensor) -> float:
        return float(torch.trace(other @ second @ other.T))

    for seed in range(5):  # any other change that gives the value differs by one that leaves the key alone
        free = torch.randn(5, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        free -= (free @ key.double())[:, None] * key.double() / key.double().dot(key.double())
        assert disturbed(change) < disturbed(change + 0.1 * free)


@pytest.mark.parametrize("facts", [1, 3, 12])
def test_closed_form_is_the_direct_solution(facts: int) -> None:
    torch.manual_seed(1)
    keys, residual = torch.randn(8, facts), torch.randn(5, facts, dtype=torch.float64)
    second = 7 * covariance(8)
    wanted = residual @ keys.double().T @ torch.linalg.inv(second + keys.double() @ keys.double().T)
    torch.testing.assert_close(residual @ closed_form(second, keys).T, wanted, rtol=1e-10, atol=1e-12)


def test_closed_form_minimizes_what_memit_minimizes() -> None:
    torch.manual_seed(2)
    keys, residual, second = torch.randn(8, 3).double(), torch.randn(5, 3).double(), covariance(8)

    def objective(change: torch.Tensor) -> float:
        return float((change @ keys - residual).square().sum() + torch.trace(change @ second @ change.T))

    best = residual @ closed_form(second, keys).T
    for _ in range(10):
        assert objective(best) < objective(best + 0.01 * torch.randn(5, 8).double())


def test_each_layer_takes_an_equal_share_of_what_is_left() -> None:
    left = torch.ones(3)
    for layer in range(4, 9):
        left = left - spread(left, layer, 8)
    assert torch.equal(left, torch.zeros(3))
    assert torch.equal(spread(torch.full((2,), 5.0), 4, 8), torch.ones(2))


def test_a_singular_covariance_is_refused() -> None:
    keys = torch.randn(3, 8, dtype=torch.float64)
    with pytest.raises(InputError, match=r"singular.*too little text.*editing\.covariance"):
        solve(keys.T @ keys - 1e-9 * torch.eye(8), torch.ones(8, 1))
