import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dft_cluster.errors import InputError
from dft_cluster.patch.encoding import Kind, Places, encode


@settings(deadline=None)
@given(
    st.integers(1, 5000),
    st.floats(0, 1),
    st.booleans(),
    st.sampled_from([1, 2, 4, 8, 16]),
    st.integers(0, 99),
)
def test_places_come_back(numel, share, dense, value_bytes, seed):
    changed = np.random.default_rng(seed).random(numel) < share
    places = encode(np.flatnonzero(changed), len(changed), value_bytes, dense)
    found = places.positions(numel)
    if places.kind == Kind.DENSE:
        assert np.array_equal(found, np.arange(numel))
        assert dense or changed.all()
    else:
        assert np.array_equal(found, np.flatnonzero(changed))


@pytest.mark.parametrize(
    ("share", "kind"),
    [(0.0, Kind.NONE), (0.0005, Kind.GAPS16), (0.05, Kind.GAPS8), (0.5, Kind.BITMAP), (0.99, Kind.DENSE)],
)
def test_the_smallest_wins(share, kind):
    numel = 1 << 20
    changed = np.random.default_rng(3).random(numel) < share
    places = encode(np.flatnonzero(changed), len(changed), 4, dense=True)
    assert places.kind == kind
    assert len(places.index) + 4 * places.count <= min(numel // 8 + 4 * changed.sum(), 4 * numel)


@pytest.mark.parametrize("gap", [0, 1, 254, 255, 256, 509, 510, 511, 65534, 65535, 65536, 131070, 1_000_000])
def test_gaps_at_the_edges_of_a_word(gap):
    changed = np.zeros(gap + 3, bool)
    changed[[gap, gap + 2]] = True
    for seen in (
        encode(np.flatnonzero(changed), len(changed), 100, dense=False),
        encode(np.flatnonzero(changed), len(changed), 100, dense=True),
    ):
        assert seen.positions(gap + 3).tolist() == [gap, gap + 2]


def test_without_old_bits_a_value_always_means_a_change():
    changed = np.ones(1000, bool)
    changed[5] = False
    assert encode(np.flatnonzero(changed), len(changed), 2, dense=False).kind == Kind.BITMAP
    changed[5] = True
    assert encode(np.flatnonzero(changed), len(changed), 2, dense=False).kind == Kind.DENSE


@pytest.mark.parametrize(
    "places",
    [
        Places(Kind.GAPS8, 2, np.array([1, 255], np.uint8)),
        Places(Kind.GAPS8, 1, np.array([10], np.uint8)),
        Places(Kind.GAPS8, 2, np.array([255, 9, 0], np.uint8)),
        Places(Kind.GAPS16, 1, np.array([255, 254], np.uint8)),
        Places(Kind.BITMAP, 1, np.array([3], np.uint8)),
        Places(Kind.BITMAP, 1, np.array([0, 0x80], np.uint8)),
    ],
)
def test_impossible_places_are_refused(places):
    with pytest.raises(InputError, match="damaged"):
        places.positions(10)
