"""A seeded sample of what `make soak` does two hundred times."""

from pathlib import Path

import pytest

from tests.soak import Soak

KILLS = 12


@pytest.mark.usefixtures("cluster")
def test_random_harm_never_loses_a_round_or_a_bit(tmp_path: Path) -> None:
    soak = Soak(tmp_path)
    rows = [soak.harm(number, seed=7) for number in range(KILLS)]
    assert [row for row in rows if not row.whole] == []
    assert sum(row.struck for row in rows) >= KILLS - 3, "nearly all of them met a run at work"
    assert {row.how for row in rows} == {"kill rank", "stop rank", "kill driver"}
