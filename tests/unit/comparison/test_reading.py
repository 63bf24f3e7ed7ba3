import pytest

from dft_cluster.comparison.reading import ranks, trajectory, worked

PAIRED = {"old-0": 1, "new-0": 2}
ALONE = {"rank-0": 1}
SECONDS = {"old": 3.0, "new": 5.0, "exchange": 1.0, "apply": 0.5, "evaluate": 9.0, "checkpoint": 4.0, "track": 2.0}


@pytest.mark.parametrize(("memory", "seconds", "number"), [(PAIRED, 6.5, 2), (ALONE, 9.5, 1)])
def test_two_groups_train_side_by_side_and_one_in_sequence(memory, seconds, number):
    line = {"seconds": SECONDS, "memory": memory}
    assert (worked(line), ranks(line)) == (seconds, number)


def test_what_was_found_in_a_cache_costs_as_if_it_were_measured():
    line = {"seconds": {"new": 5.0, "evaluate": 9.0}, "elsewhere": {"covariance": 30.0}, "memory": ALONE}
    assert worked(line) == 35.0


def test_a_trajectory_costs_what_was_done_until_then_on_all_ranks():
    measured = {metric: {"token": 50.0} for metric in ("reliability", "generality", "locality")}
    lines = [
        {"round": 0, "seconds": {"evaluate": 9.0}, "memory": PAIRED, **measured},
        {"round": 1, "seconds": SECONDS, "memory": PAIRED, "loss": {"old": [1.0]}},
        {"round": 2, "seconds": SECONDS, "memory": PAIRED, "loss": {"old": [1.0], "new": [1.0]}, **measured},
    ]
    assert [(point.round, point.cost, point.taught) for point in trajectory(lines, "token")] == [
        (0, 0.0, False), (2, 26.0, True),
    ]  # fmt: skip


def test_forgetting_alone_teaches_nothing():
    measured = {metric: {"token": 50.0} for metric in ("reliability", "generality", "locality")}
    line = {"round": 1, "seconds": {"old": 1.0}, "memory": ALONE, "loss": {"old": [1.0]}, **measured}
    assert [point.taught for point in trajectory([line], "token")] == [False]
