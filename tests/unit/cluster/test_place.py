"""Where groups go, on clusters of several shapes."""

import pytest

from dft_cluster.cluster.place import Need, arrange, fits, holds

GPU = Need(1, 1)


def node(gpus: float, cpus: float = 64) -> dict[str, float]:
    return {"CPU": cpus, "GPU": gpus, "memory": 1e12}


@pytest.mark.parametrize(
    ("nodes", "groups", "ranks", "expected"),
    [
        ([node(1)], 1, 1, ["STRICT_PACK"]),
        ([node(8)], 2, 4, ["STRICT_PACK", "STRICT_PACK"]),
        ([node(8), node(8)], 2, 8, ["STRICT_PACK", "STRICT_PACK"]),
        ([node(8), node(8)], 1, 16, ["PACK"]),
        ([node(4), node(2), node(2)], 2, 4, ["STRICT_PACK", "PACK"]),
        ([node(8), node(4)], 2, 4, ["STRICT_PACK", "STRICT_PACK"]),
        ([node(4), node(6)], 2, 4, ["STRICT_PACK", "STRICT_PACK"]),
        ([node(3), node(3), node(2)], 2, 4, ["PACK", "PACK"]),
    ],
)
def test_a_group_is_packed_where_it_fits_and_else_spread(nodes, groups, ranks, expected):
    assert holds(nodes, GPU) >= groups * ranks
    assert arrange(nodes, groups, ranks, GPU) == expected


def test_what_a_node_holds():
    assert fits(node(8, cpus=4), GPU) == 4
    assert fits(node(0), GPU) == 0
    assert fits({"CPU": 2.0}, Need(0.333, 0)) == 6
    assert fits({"CPU": 1.0}, Need(0.1, 0)) == 10, "fractions add up to a whole"
    assert holds([node(8), node(3), {"CPU": 8.0}], GPU) == 11
    assert str(Need(1, 0.5)) == "1 CPU and 0.5 GPU"
