"""A seeded sample of what `make soak` does two hundred times."""

from pathlib import Path

import pytest

from tests.soak import Soak

RUNS, STRIKES = 4, 3


@pytest.mark.usefixtures("cluster")
def test_random_harm_never_loses_a_round_or_a_bit(tmp_path: Path) -> None:
    """Each run is struck several times, for its start is the dear part."""
    soak = Soak(tmp_path)
    rows = [row for number in range(RUNS) for row in soak.harm(number, seed=7, strikes=STRIKES)]
    assert [row for row in rows if not row.whole] == []
    assert sum(row.struck for row in rows) >= RUNS * STRIKES - 3, "nearly all of them met a run at work"
    assert {row.how for row in rows if row.struck} == {"kill rank", "stop rank", "kill driver"}
