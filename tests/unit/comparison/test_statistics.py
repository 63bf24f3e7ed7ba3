import math
import random

import pytest

from dft_cluster.comparison.statistics import (
    Point,
    difference,
    front,
    harmonic,
    harmonic_difference,
    mean_trajectory,
    spread,
)


def test_mean_and_standard_deviation_over_seeds():
    three = spread([90.0, 94.0, 98.0])
    assert (three.mean, three.std, three.n) == (94.0, 4.0, 3)  # √((16 + 0 + 16) / 2)
    assert (spread([7.0, None]).mean, spread([7.0, None]).std) == (7.0, None)
    assert spread([None]) is None


def test_the_harmonic_mean_leaves_out_what_is_not_there():
    assert harmonic([60.0, None, 30.0]) == pytest.approx(40.0)
    assert harmonic([60.0, 0.0]) == 0.0
    assert harmonic([None]) == 0.0


def test_the_mean_trajectory_holds_the_rounds_that_all_seeds_have():
    other = [Point(1, 6.0, 80.0, 50.0, 80.0), Point(2, 9.0, 85.0, 50.0, 80.0)]
    [point] = mean_trajectory([[Point(0, 0.0, 10.0, 0.0, 100.0), Point(1, 4.0, 70.0, 40.0, 90.0)], other])
    assert point == Point(1, 5.0, 75.0, 45.0, 85.0)
    assert mean_trajectory([]) == []


def test_the_front_holds_what_no_other_beats():
    points = [(1.0, 10.0), (2.0, 9.0), (2.0, 30.0), (3.0, 30.0), (5.0, 31.0), (0.5, 1.0)]
    assert front(points) == [5, 0, 2, 4]


def outcomes(shares):
    return [[fact, share, float(share == 1)] for fact, share in shares]


def test_a_difference_that_every_fact_has_leaves_no_doubt():
    better = {s: outcomes([(fact, 0.75) for fact in range(20)]) for s in (0, 1)}
    worse = {s: outcomes([(fact, 0.5) for fact in range(20)]) for s in (0, 1)}
    found = difference(better, worse, 1, 200)
    assert (found.mean, found.low, found.high, found.facts, found.seeds) == (25.0, 25.0, 25.0, 20, 2)
    assert difference(better, worse, 2, 200).mean == 0.0  # no answer is right as a whole, on either side


def test_the_interval_is_that_of_a_plain_bootstrap():
    rng = random.Random(1)
    ours, theirs = ([float(rng.random() < p) for _ in range(60)] for p in (0.8, 0.6))
    found = difference({0: outcomes(enumerate(ours))}, {0: outcomes(enumerate(theirs))}, 1, 4000)
    gains = [100 * (a - b) for a, b in zip(ours, theirs, strict=True)]
    assert found.mean == pytest.approx(sum(gains) / 60)
    deviation = math.sqrt(sum((gain - found.mean) ** 2 for gain in gains) / 60) / math.sqrt(60)
    assert found.low == pytest.approx(found.mean - 1.96 * deviation, abs=1.5)
    assert found.high == pytest.approx(found.mean + 1.96 * deviation, abs=1.5)
    again = difference({0: outcomes(enumerate(ours))}, {0: outcomes(enumerate(theirs))}, 1, 4000)
    assert found == again


def test_a_fact_is_drawn_with_all_its_probes():
    # Fact 0 has three probes (all gained), fact 1 one (none gained): the mean is over probes.
    ours, theirs = outcomes([(0, 1.0)] * 3 + [(1, 0.0)]), outcomes([(0, 0.0)] * 3 + [(1, 0.0)])
    found = difference({0: ours}, {0: theirs}, 1, 500)
    assert found.mean == 75.0
    # Draws: both facts (75), fact 0 twice (100), fact 1 twice (0).
    assert (found.low, found.high) == (0.0, 100.0)


def test_only_seeds_that_both_have_are_paired():
    ours = {0: outcomes([(0, 1.0), (1, 1.0)]), 1: outcomes([(0, 0.0), (1, 0.0)])}
    theirs = {0: outcomes([(0, 0.0), (1, 0.0)]), 2: outcomes([(0, 1.0), (1, 1.0)])}
    found = difference(ours, theirs, 1, 50)
    assert (found.mean, found.seeds) == (100.0, 1)
    assert difference(ours, {5: theirs[0]}, 1, 50) is None
    assert difference({0: outcomes([(0, 1.0)])}, {0: outcomes([(0, 0.5)])}, 1, 50) is None, (
        "one fact says nothing of others"
    )
    assert difference(ours, {0: []}, 1, 50) is None


def test_a_harmonic_mean_is_drawn_with_the_same_facts_in_every_kind():
    # Fact 0 has both kinds right, fact 1 the first one alone; the reference has half of everything.
    ours = {0: [outcomes([(0, 1.0), (1, 1.0)]), outcomes([(0, 1.0), (0, 1.0), (1, 0.0), (1, 0.0)])]}
    theirs = {0: [outcomes([(0, 0.5), (1, 0.5)]), outcomes([(0, 0.5), (0, 0.5), (1, 0.5), (1, 0.5)])]}
    found = harmonic_difference(ours, theirs, 1, 500)
    assert found.mean == pytest.approx(100 * (2 / (1 / 1.0 + 1 / 0.5) - 0.5))
    # Draws: both facts (66.7 − 50), fact 0 twice (100 − 50), fact 1 twice (0 − 50: a mean of 0 makes all of it 0).
    assert (found.low, found.high, found.facts, found.seeds) == (-50.0, 50.0, 2, 1)


def test_a_harmonic_mean_is_that_of_each_seed():
    ours = {
        0: [outcomes([(0, 1.0), (1, 1.0)]), outcomes([(0, 0.5), (1, 0.5)])],
        1: [outcomes([(0, 0.5), (1, 0.5)])] * 2,
    }
    theirs = {seed: [outcomes([(0, 0.25), (1, 0.25)])] * 2 for seed in (0, 1, 2)}
    found = harmonic_difference(ours, theirs, 1, 50)
    # (2/3 + 1/2) / 2 − 1/4; of the two seeds' mean outcomes, 3/4 and 1/2, it would be 3/5 − 1/4.
    assert found.mean == found.low == found.high == pytest.approx(100 * (7 / 12 - 1 / 4))
    assert found.seeds == 2


def test_a_draw_without_a_probe_of_a_kind_has_no_harmonic_mean():
    ours = {0: [outcomes([(0, 1.0), (1, 1.0)]), outcomes([(0, 1.0)])]}
    theirs = {0: [outcomes([(0, 0.5), (1, 0.5)]), outcomes([(0, 0.5)])]}
    found = harmonic_difference(ours, theirs, 1, 200)
    assert (found.mean, found.low, found.high) == (50.0, 50.0, 50.0)
    assert harmonic_difference(ours, {1: theirs[0]}, 1, 50) is None
    assert harmonic_difference(ours, {0: theirs[0][:1]}, 1, 50) is None
    assert harmonic_difference({0: []}, {0: []}, 1, 50) is None
