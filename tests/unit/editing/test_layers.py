"""Which layers ROME and MEMIT edit."""

from typing import Any

import pytest

from dft_cluster.editing import layers
from dft_cluster.errors import InputError


@pytest.mark.parametrize(
    ("chosen", "most", "told"),
    [
        ([2], 5, r"\[2\] of a model whose layers are 0 to 1"),
        ([-1], 5, "0 to 1"),
        ([], 5, "one or more of 0 to 0"),
        ([0, 0], 5, "each once"),
        ([0, 1], 1, "rome edits one layer"),
        ("all", 5, "goes with ft_c"),
        ([0, 1], 5, r"method\.layers: 1 is the last block.* Right would be one or more of 0 to 0"),
        ([1], 1, "1 is the last block"),
    ],
)
def test_layers_that_cannot_be(chosen: Any, most: int, told: str) -> None:
    with pytest.raises(InputError, match=told):
        layers.check(chosen, 2, most)


def test_layers_lie_together_and_inside() -> None:
    for depth in (2, 4, 12, 30, 32, 80):
        for count in (1, 5):
            chosen = layers.by_rule(depth, count)
            assert chosen == list(range(chosen[0], chosen[-1] + 1)) and chosen[0] >= 0 and chosen[-1] < depth - 1
            assert len(chosen) == min(count, depth - 1)
    assert [layers.by_rule(30, count) for count in (1, 5)] == [[6], [4, 5, 6, 7, 8]]
    assert layers.by_effect([0.1, 0.5, 0.2, 0.0], 1) == [1]
    assert layers.by_effect([0.1, 0.5, 0.2, 0.0, 0.0], 3) == [0, 1, 2]
    assert layers.by_effect([0.0, 0.0, 0.9], 2) == [0, 1], (
        "of the last block nothing reads what it gives at the subject"
    )
    assert layers.by_effect([0.0] * 28 + [0.5, 0.6], 5) == [24, 25, 26, 27, 28]
