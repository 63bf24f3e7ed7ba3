"""The selection is exact, and the same for any number of shards."""

from decimal import Decimal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dft_cluster.arithmetic import selection
from dft_cluster.arithmetic.contrast import agreeing, all_finite, contrast, opposing
from dft_cluster.arithmetic.selection import HIGHEST, Bracket, Piece, count_to_keep, find_cuts, select

DENORMAL = float(np.float32(1e-45))


def brute_force(keys: torch.Tensor, k: int) -> torch.Tensor:
    """A stable sort of everything: largest key first, lowest index first among equals."""
    order = sorted(range(keys.numel()), key=lambda i: (-int(keys[i]), i))
    mask = torch.zeros(keys.numel(), dtype=torch.bool)
    mask[[i for i in order[:k] if keys[i] > 0]] = True
    return mask


def cut_up(parameters: list[torch.Tensor], shards: int) -> list[list[Piece]]:
    """Each parameter cut into `shards` nearly equal pieces, dealt out in reverse to show that order is not luck."""
    dealt: list[list[Piece]] = [[] for _ in range(shards)]
    for index, keys in enumerate(parameters):
        start = 0
        for rank, piece in enumerate(keys.tensor_split(shards)):
            dealt[(rank + index) % shards].append(Piece(index, start, piece))
            start += piece.numel()
    return dealt


def reassembled(
    shards: list[list[Piece]], masks: list[list[torch.Tensor]], parameters: list[torch.Tensor]
) -> torch.Tensor:
    whole = [torch.zeros(keys.numel(), dtype=torch.bool) for keys in parameters]
    for shard, shard_masks in zip(shards, masks, strict=True):
        for piece, mask in zip(shard, shard_masks, strict=True):
            whole[piece.parameter][piece.start : piece.start + len(mask)] = mask
    return torch.cat(whole)


values = st.one_of(
    st.sampled_from([0.0, DENORMAL, 2 * DENORMAL, 1e-38, 1.0, 3.0, 3.4e38, float("inf")]),
    st.floats(min_value=0, max_value=1, width=32),
)


@settings(max_examples=150, deadline=None)
@given(
    parameters=st.lists(st.lists(values, min_size=1, max_size=60), min_size=1, max_size=4),
    share=st.floats(min_value=0.01, max_value=1.0),
)
def test_any_number_of_shards_equals_a_brute_force_sort(parameters: list[list[float]], share: float) -> None:
    keys = [torch.tensor(p, dtype=torch.float32).abs().view(torch.int32) for p in parameters]
    flat = torch.cat(keys)
    k = max(1, int(share * flat.numel()))
    expected = brute_force(flat, k)
    for count in (1, 2, 3, 7):
        shards = cut_up(keys, count)
        assert torch.equal(reassembled(shards, select(shards, k), keys), expected)


@pytest.mark.parametrize("kind", ["normal", "all equal", "few distinct", "denormals", "huge", "sorted", "mostly zero"])
@pytest.mark.parametrize("share", ["0.0001", "0.05", "0.29", "1"])
def test_large_shards_with_a_sampled_bracket_equal_a_stable_sort(kind: str, share: str) -> None:
    generator = torch.Generator().manual_seed(7)
    n = 200_003
    random = torch.rand(n, generator=generator)
    scores = {
        "normal": torch.randn(n, generator=generator).abs(),
        "all equal": torch.full((n,), 0.25),
        "few distinct": (random * 5).floor() / 7,
        "denormals": random * 1e-40,
        "huge": random * 3.4e38,
        "sorted": torch.arange(n, dtype=torch.float32),
        "mostly zero": torch.where(random > 0.999, random, 0.0),
    }[kind]
    keys = [part.clone() for part in scores.view(torch.int32).tensor_split(5)]
    k = count_to_keep(Decimal(share), n)
    order = torch.sort(torch.cat(keys), descending=True, stable=True)
    expected = torch.zeros(n, dtype=torch.bool)
    expected[order.indices[:k][order.values[:k] > 0]] = True
    for count in (1, 3, 7):
        shards = cut_up(keys, count)
        assert torch.equal(reassembled(shards, select(shards, k), keys), expected)


def test_a_misleading_first_bracket_costs_passes_and_never_exactness() -> None:
    keys = torch.arange(1, 10_001, dtype=torch.int32)
    for start in (Bracket.around(1, 5), Bracket.around(9_990, 10_000), Bracket.around(20_000, HIGHEST)):
        cuts = find_cuts({0: 100}, lambda b: {0: selection.tally([keys], b[0])}, {0: start})
        assert (cuts[0].threshold, cuts[0].ties) == (9_901, None)


def test_k_is_exact_decimal_arithmetic() -> None:
    assert count_to_keep(Decimal("0.29"), 100) == 29  # 0.29 * 100 is 28.999… in floats
    assert count_to_keep(Decimal("0.07"), 100) == 7
    assert count_to_keep(Decimal(1), 2**53 + 1) == 2**53 + 1
    assert count_to_keep(Decimal("0.001"), 999) == 0


def test_the_device_path_counts_like_the_host_path(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = torch.randn(50_000, generator=torch.Generator().manual_seed(1)).abs().view(torch.int32)
    bracket = Bracket.around(int(torch.tensor(0.5).view(torch.int32)), int(torch.tensor(1.5).view(torch.int32)))
    host = selection.tally([keys], bracket)

    class Elsewhere(torch.Tensor):
        """The same numbers, saying that they lie on another device."""

        @property
        def device(self) -> torch.device:  # type: ignore[override]
            return torch.device("meta")

    above, within = selection._sift(keys.as_subclass(Elsewhere), bracket)
    assert above == host.above
    assert len(within) == int(host.inside.sum())


floats = st.one_of(
    st.sampled_from([0.0, -0.0, DENORMAL, -DENORMAL, 1e-30, -1e-30, 3.4e38, -3.4e38]),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(floats, floats), min_size=1, max_size=50))
def test_contrast_is_the_difference_where_signs_oppose_and_a_clean_zero_elsewhere(
    pairs: list[tuple[float, float]],
) -> None:
    new, old = (torch.tensor(side, dtype=torch.float32) for side in zip(*pairs, strict=True))
    opposed = ((new > 0) & (old < 0)) | ((new < 0) & (old > 0))
    expected = torch.where(opposed, (new - old).abs(), torch.zeros(()))
    score = contrast(new, old)
    assert torch.equal(score.view(torch.int32), expected.view(torch.int32))
    assert torch.equal(score.view(torch.int32) > 0, opposed)
    assert torch.equal(contrast(new, old, out=old).view(torch.int32), expected.view(torch.int32))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(floats, floats), min_size=1, max_size=50))
def test_conflicts_and_agreements_by_what_is_new(pairs: list[tuple[float, float]]) -> None:
    new, old = (torch.tensor(side, dtype=torch.float32) for side in zip(*pairs, strict=True))
    apart = ((new > 0) & (old < 0)) | ((new < 0) & (old > 0))
    alike = ((new > 0) & (old > 0)) | ((new < 0) & (old < 0))
    for score, where in ((opposing, apart), (agreeing, alike)):
        found = score(new, old)
        assert torch.equal(found.view(torch.int32), torch.where(where, new.abs(), torch.zeros(())).view(torch.int32))
        assert torch.equal(score(new, old, out=old.clone()).view(torch.int32), found.view(torch.int32))


def test_nan_and_infinity_are_noticed() -> None:
    for bad in (float("nan"), float("inf"), -float("inf")):
        delta = torch.zeros(1000)
        delta[517] = bad
        assert not all_finite(delta)
    assert all_finite(torch.full((9,), 3.4e38))
    assert all_finite(torch.zeros(0))
