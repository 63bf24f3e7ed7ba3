import random

import numpy as np
import pytest

from dft_cluster.comparison.levels import Rounds, at_equal, at_level, differences
from dft_cluster.comparison.statistics import Point

TRAJECTORY = [
    Point(0, 0.0, 10.0, 0.0, 100.0, taught=False),
    Point(1, 4.0, 70.0, 40.0, 90.0),
    Point(3, 12.0, 90.0, 60.0, 80.0),
    Point(4, 16.0, 86.0, 62.0, 78.0),
    Point(5, 20.0, 98.0, 74.0, 70.0),
]


def test_a_level_is_met_on_the_line_between_the_first_rounds_that_bracket_it():
    met = at_level(TRAJECTORY, 80.0)  # half-way from 70 to 90
    assert (met.round, met.cost, met.generality, met.locality) == (3, 8.0, 50.0, 85.0)
    later = at_level(TRAJECTORY, 95.0)  # three quarters from 86 to 98, never from the earlier 90
    assert (later.round, later.cost, later.generality, later.locality) == (5, 19.0, 71.0, 72.0)


def test_a_first_round_counts_as_it_is():
    assert at_level(TRAJECTORY, 50.0) == TRAJECTORY[1]


def test_a_round_after_forgetting_alone_is_a_first_one():
    forgot = Point(1, 2.0, 5.0, 0.0, 95.0, taught=False)
    assert at_level([TRAJECTORY[0], forgot, *TRAJECTORY[1:]], 50.0) == TRAJECTORY[1]


def test_two_are_compared_where_both_have_the_same():
    quick = [TRAJECTORY[0], Point(1, 10.0, 86.0, 80.0, 60.0), Point(2, 20.0, 90.0, 80.0, 50.0)]
    mine, other = at_equal(TRAJECTORY, quick, 80.0)
    assert mine.reliability == other.reliability == 86.0, "what the quick one has after its first round"
    assert (mine.cost, mine.generality) == (4.0 + 8.0 * 0.8, 40.0 + 20.0 * 0.8)
    assert other == quick[1]
    mine, other = at_equal(TRAJECTORY, quick, 88.0)
    assert mine.reliability == pytest.approx(other.reliability) == pytest.approx(88.0)
    assert at_equal(TRAJECTORY, quick, 95.0) is None
    assert at_equal(TRAJECTORY[:2], quick, 60.0) is None, "the other is there only from 86 on"


def test_a_level_that_a_round_has_is_that_round():
    assert at_level(TRAJECTORY, 90.0).cost == 12.0
    flat = [Point(0, 0.0, 50.0, 1.0, 2.0, taught=False), Point(1, 1.0, 50.0, 3.0, 4.0)]
    assert at_level(flat, 50.0).cost == 1.0, "where something was taught"


def test_nothing_is_extrapolated():
    assert at_level(TRAJECTORY, 99.0) is None
    assert at_level(TRAJECTORY, 5.0) is None
    assert at_level(TRAJECTORY[:1], 10.0) is None
    assert at_level([], 10.0) is None


def test_a_metric_that_was_not_measured_stays_unknown():
    met = at_level([Point(1, 0.0, 0.0, None, 100.0), Point(2, 2.0, 100.0, None, 50.0)], 50.0)
    assert (met.generality, met.locality) == (None, 75.0)


def kept(rounds):
    """By metric and round, one outcome a fact."""
    return {
        metric: {n: [[fact, share, 0.0] for fact, share in enumerate(shares)] for n, shares in one.items()}
        for metric, one in rounds.items()
    }


def run(reliability, others):
    """A run of as many rounds: every fact's outcomes of reliability; generality and locality are `others`."""
    by_round = kept({"reliability": reliability, "generality": others, "locality": others})
    points = [Point(0, 0.0, 0.0, 0.0, 100.0, taught=False)]
    for number, shares in reliability.items():
        beside = 100 * sum(others[number]) / len(others[number])
        points.append(Point(number, float(number), 100 * sum(shares) / len(shares), beside, beside))
    return points, Rounds.redrawn(points, by_round, 1, 500)


def compared(pairs, level):
    """Of pairs of runs."""
    there = [(at_equal(ours, theirs, level), (mine, other)) for (ours, mine), (theirs, other) in pairs]
    met = [one for one in there if one[0] is not None]
    return differences([both for both, _ in met], [drawn for _, drawn in met], level)


def test_draws_find_the_way_to_a_level_anew():
    """Reliability rises from a half to all; what is lost on the way hangs on how far it must go, draw by draw."""
    facts = 40
    ours = run({1: [1.0, 0.0] * 20, 2: [1.0] * facts}, {1: [1.0] * facts, 2: [0.0] * facts})
    theirs = run({1: [0.5] * facts, 2: [1.0] * facts}, {1: [1.0] * facts, 2: [0.0] * facts})
    found, share = compared([(ours, theirs)], 80.0)
    one = found["locality"]
    assert one.mean == pytest.approx(0.0), "both are six tenths on the way"
    rng, ways = random.Random(3), []
    for _ in range(4000):
        half = sum(rng.random() < 0.5 for _ in range(facts)) / facts
        ways.append(100 * (0.6 - (0.8 - half) / (1 - half)))
    ways.sort()
    assert (one.low, one.high) == (pytest.approx(ways[100], abs=4), pytest.approx(ways[3900], abs=4))
    assert one.low < -5 < 5 < one.high
    assert (share, one.facts) == (1.0, facts)


def test_draws_in_which_one_does_not_pass_it_are_counted():
    ours = run({1: [1.0, 0.0] * 20, 2: [1.0] * 32 + [0.0] * 8}, {1: [1.0] * 40, 2: [0.5] * 40})
    found, share = compared([(ours, ours)], 75.0)
    assert share == pytest.approx(0.83, abs=0.07)
    assert (found["locality"].low, found["locality"].high) == (0.0, 0.0), "from itself it never differs"


def test_seeds_are_averaged_where_they_pass_and_runs_without_outcomes_cannot_be_drawn():
    ours, theirs = run({1: [1.0] * 4}, {1: [0.75] * 4}), run({1: [1.0] * 4}, {1: [0.5] * 4})
    low = run({1: [0.5] * 4}, {1: [0.0] * 4})
    found, _ = compared([(ours, theirs), (low, theirs)], 80.0)
    one = found["generality"]
    assert (one.mean, one.low, one.high, one.facts, one.seeds) == (25.0, 25.0, 25.0, 4, 1)
    assert Rounds.redrawn(ours[0], {}, 1, 10) is None


def test_a_draw_takes_a_fact_with_all_its_probes():
    points = [Point(0, 0.0, 0.0, None, 100.0, taught=False), Point(1, 1.0, 50.0, None, 25.0)]
    by_round = {"reliability": {1: [[0, 1.0, 1], [1, 0.0, 0]]}, "locality": {1: [[0, 0.0, 0]] * 3 + [[1, 1.0, 1]]}}
    rounds = Rounds.redrawn(points, by_round, 1, 400)
    drawn = set(zip(rounds.figures["reliability"][:, 1], rounds.figures["locality"][:, 1], strict=True))
    assert drawn == {(0.0, 100.0), (50.0, 25.0), (100.0, 0.0)}
    assert np.isnan(rounds.figures["generality"]).all()
    assert (rounds.figures["locality"][:, 0] == 100.0).all()
