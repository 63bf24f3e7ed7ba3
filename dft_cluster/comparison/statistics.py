"""What figures of several seeds, facts and rounds say together: pure functions."""

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

Outcomes = Sequence[Sequence[float]]
"""Of one run and one kind of probe: (fact, share of tokens right, all right) for every probe."""
CHUNK = 500  # draws at a time: a matrix of draws by facts


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (n − 1; none of a single value) over `n` values."""

    mean: float
    std: float | None
    n: int


def spread(values: Iterable[float | None]) -> Spread | None:
    """Of the values that are there; None where there is none."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return Spread(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None, len(known))


@dataclass(frozen=True)
class Difference:
    """A difference of two methods in percent points, with its 95 % interval over facts."""

    mean: float
    low: float
    high: float
    facts: int
    seeds: int


def difference(
    method: Mapping[int, Outcomes], reference: Mapping[int, Outcomes], column: int, draws: int, seed: int = 0
) -> Difference | None:
    """Paired bootstrap over facts of `method` minus `reference`, both by seed.

    Seeds that both have are averaged within each probe's fact; then facts are drawn with replacement, and with a
    fact all its probes: Σ w (m − r) / Σ w n, where m and r are a fact's summed outcomes, n its probes, w how often it
    was drawn. The interval holds the middle 95 % of the draws.
    """
    seeds = sorted(method.keys() & reference.keys())
    if not seeds or not all(method[s] and reference[s] for s in seeds):
        return None
    ours, theirs = (_by_fact([side[s] for s in seeds], column) for side in (method, reference))
    facts = sorted(ours.keys() & theirs.keys())
    if len(facts) < 2:  # one fact says nothing of others
        return None
    gain = np.array([ours[fact][0] - theirs[fact][0] for fact in facts])
    probes = np.array([ours[fact][1] for fact in facts])
    drawn = np.concatenate([chunk @ gain / (chunk @ probes) for chunk in _chunks(len(facts), draws, seed)])
    return _percent(gain.sum() / probes.sum(), drawn, len(facts), len(seeds))


def harmonic_difference(
    method: Mapping[int, Sequence[Outcomes]], reference: Mapping[int, Sequence[Outcomes]], column: int, draws: int
) -> Difference | None:
    """The same of the harmonic mean of several kinds of probes: that of each run, over the seeds averaged.

    In a draw every kind has the same facts; one that leaves a kind without a probe has no harmonic mean and is left out.
    """
    seeds = sorted(method.keys() & reference.keys())
    runs = [side[s] for side in (method, reference) for s in seeds]
    if not seeds or not all(run and all(run) for run in runs) or len(set(map(len, runs))) > 1:
        return None
    found = [[_by_fact([kind], column) for kind in run] for run in runs]
    facts = sorted({fact for run in found for kind in run for fact in kind})
    totals = np.array([[[kind.get(fact, (0.0, 0.0)) for kind in run] for run in found] for fact in facts])

    def gains(weights: np.ndarray) -> np.ndarray:
        right, probes = np.moveaxis(np.tensordot(weights, totals, 1), -1, 0)  # draws × runs × kinds
        with np.errstate(divide="ignore", invalid="ignore"):  # a mean of 0 makes the whole 0
            scores = right.shape[-1] / (probes / right).sum(-1)
        return scores[:, : len(seeds)].mean(-1) - scores[:, len(seeds) :].mean(-1)

    drawn = np.concatenate([gains(chunk) for chunk in _chunks(len(facts), draws)])
    [mean], known = gains(np.ones((1, len(facts)))), drawn[np.isfinite(drawn)]
    return _percent(mean, known, len(facts), len(seeds)) if known.size and len(facts) > 1 else None


def drawn_shares(outcomes: Outcomes, column: int, facts: Sequence[int], draws: int) -> np.ndarray:
    """The mean outcome in every draw of these facts; NaN in one that leaves no probe."""
    known = _by_fact([outcomes], column)
    right, probes = np.array([known.get(fact, (0.0, 0.0)) for fact in facts]).T
    with np.errstate(invalid="ignore"):
        return np.concatenate([chunk @ right / (chunk @ probes) for chunk in _chunks(len(facts), draws)])


def percentiles(drawn: np.ndarray) -> tuple[float, float]:
    """The ends of the middle 95 %."""
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def _percent(mean: float, drawn: np.ndarray, facts: int, seeds: int) -> Difference:
    return Difference(100 * float(mean), *percentiles(100 * drawn), facts, seeds)


def _chunks(facts: int, draws: int, seed: int = 0) -> Iterator[np.ndarray]:
    weights = _weights(facts, draws, seed)
    return (weights[start : start + CHUNK].astype(np.float64) for start in range(0, draws, CHUNK))


@lru_cache(maxsize=2)
def _weights(facts: int, draws: int, seed: int) -> np.ndarray:
    """How often every fact is drawn, draw by draw: the same for all differences over as many facts."""
    rng, chances = np.random.default_rng(seed), np.full(facts, 1 / facts)
    sizes = (min(CHUNK, draws - start) for start in range(0, draws, CHUNK))
    return np.concatenate([rng.multinomial(facts, chances, size=size).astype(np.uint16) for size in sizes])


def _by_fact(runs: Sequence[Outcomes], column: int) -> dict[int, tuple[float, float]]:
    """By fact: its summed outcomes and the number of its probes, both per run."""
    found: dict[int, tuple[float, float]] = {}
    for outcomes in runs:
        for row in outcomes:
            total, count = found.get(int(row[0]), (0.0, 0.0))
            found[int(row[0])] = (total + row[column] / len(runs), count + 1 / len(runs))
    return found


@dataclass(frozen=True)
class Point:
    """A measured round: what it cost until then, and what it reached (percent)."""

    round: int
    cost: float
    reliability: float
    generality: float | None
    locality: float | None
    taught: bool = True
    """Whether anything new was taught by then: not before the first round, and not by forgetting alone."""

    @property
    def quality(self) -> float:
        return harmonic([self.reliability, self.generality, self.locality])


def harmonic(values: Iterable[float | None]) -> float:
    """The harmonic mean of those that are there; 0 where one is 0."""
    known = [value for value in values if value is not None]
    return statistics.harmonic_mean(known) if known else 0.0


def mean_trajectory(trajectories: Sequence[Sequence[Point]]) -> list[Point]:
    """The rounds that all seeds measured, averaged."""
    by_round = [{point.round: point for point in one} for one in trajectories]
    if not by_round:
        return []
    points = []
    for number in sorted(set.intersection(*(set(one) for one in by_round))):
        here = [one[number] for one in by_round]
        generality, locality = spread(p.generality for p in here), spread(p.locality for p in here)
        points.append(
            Point(
                number,
                statistics.fmean(p.cost for p in here),
                statistics.fmean(p.reliability for p in here),
                generality.mean if generality else None,
                locality.mean if locality else None,
                all(p.taught for p in here),
            )
        )
    return points


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Places of the (cost, quality) that no other beats: none is as cheap and better, or as good and cheaper."""
    order = sorted(range(len(points)), key=lambda place: (points[place][0], -points[place][1]))
    best, found = -math.inf, []
    for place in order:
        if points[place][1] > best:
            best = points[place][1]
            found.append(place)
    return found
