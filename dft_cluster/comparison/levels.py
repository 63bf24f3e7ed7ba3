"""Where trajectories pass a reliability, and what two methods differ in there: as measured, and in draws of the facts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import fmean
from typing import NamedTuple

import numpy as np

from dft_cluster.comparison.reading import METRICS
from dft_cluster.comparison.statistics import Difference, Outcomes, Point, drawn_shares, percentiles


class Passing(NamedTuple):
    """Draw by draw: the place of the round that lies beyond a level (−1: none), and which part of the way to it is gone."""

    after: np.ndarray
    part: np.ndarray


@dataclass(frozen=True)
class Rounds:
    """A run's measured rounds: reliability, generality and locality in percent as draws × rounds, NaN where not measured."""

    taught: np.ndarray
    figures: Mapping[str, np.ndarray]
    facts: int
    """How many were drawn from; none of what is as measured."""

    @classmethod
    def measured(cls, points: Sequence[Point]) -> "Rounds":
        """As they came out, which is one draw."""
        figures = {name: np.array([[getattr(p, name) for p in points]], np.float64) for name in METRICS}
        return cls(np.array([p.taught for p in points], bool), figures, 0)

    @classmethod
    def redrawn(
        cls, points: Sequence[Point], kept: Mapping[str, Mapping[int, Outcomes]], column: int, draws: int
    ) -> "Rounds | None":
        """Each draw takes as many facts, with replacement, and with a fact all its probes. A round in which nothing was taught
        yet is taken as it was measured where it kept no outcomes; None where a later one kept none."""
        whole = cls.measured(points)
        asked = sorted({int(row[0]) for p in points for row in kept.get(METRICS[0], {}).get(p.round, [])})
        figures = {}
        for name in METRICS:
            by_round = [kept.get(name, {}).get(p.round, []) for p in points]
            if any(
                not rows and p.taught and getattr(p, name) is not None for p, rows in zip(points, by_round, strict=True)
            ):
                return None
            figures[name] = np.repeat(whole.figures[name], draws, axis=0)
            for place, rows in enumerate(by_round):
                if rows:
                    figures[name][:, place] = 100 * drawn_shares(rows, column, asked, draws)
        return cls(whole.taught, figures, len(asked))

    def passing(self, level: np.ndarray) -> Passing:
        """Where reliability first passes a level: between the first two measured rounds that bracket it, on the straight line.

        A first round that passes it counts as it is: between the untaught model and that round nothing was measured, and half
        of a round cannot be had. Nothing where no two rounds do (never extrapolated): the level is above all rounds, or below
        the first one.
        """
        start, end = self.figures["reliability"][:, :-1], self.figures["reliability"][:, 1:]
        brackets = (start <= level[:, None]) & (level[:, None] <= end)
        if not brackets.size:
            return Passing(np.full(len(level), -1), np.ones(len(level)))
        before, row = brackets.argmax(1), np.arange(len(level))
        low, span = start[row, before], end[row, before] - start[row, before]
        on_the_way = np.divide(level - low, span, out=np.zeros_like(low), where=span != 0)
        part = np.where(self.taught[before], on_the_way, 1.0)
        return Passing(np.where(brackets.any(1), before + 1, -1), part)

    def at(self, name: str, where: Passing) -> np.ndarray:
        """A figure there, draw by draw: NaN where the level is not passed."""
        row, values = np.arange(len(where.after)), self.figures[name]
        if values.shape[1] < 2:
            return np.full(len(row), np.nan)
        start, end = values[row, where.after - 1], values[row, where.after]
        met = np.where(where.part == 1, end, start + where.part * (end - start))
        return np.where(where.after < 0, np.nan, met)


def both_at(ours: Rounds, theirs: Rounds, level: float) -> tuple[Passing, Passing]:
    """Both at one reliability: at `level`, or at that of a first round which counts as it is and lies above."""
    asked = np.full(len(ours.figures["reliability"]), level)
    first = [(side, side.passing(asked)) for side in (ours, theirs)]
    whole = [np.where(where.part == 1, side.at("reliability", where), level) for side, where in first]
    common = np.where(np.isnan(whole).any(0), np.nan, np.max([asked, *whole], axis=0))  # NaN is passed nowhere
    return ours.passing(common), theirs.passing(common)


def at_level(trajectory: Sequence[Point], level: float) -> Point | None:
    """What a trajectory has where its reliability first passes `level`; None where it does not."""
    rounds = Rounds.measured(trajectory)
    return _point(trajectory, rounds, rounds.passing(np.array([level])))


def at_equal(ours: Sequence[Point], theirs: Sequence[Point], level: float) -> tuple[Point, Point] | None:
    """The same of two trajectories where both have one reliability."""
    sides = Rounds.measured(ours), Rounds.measured(theirs)
    mine, other = (_point(t, r, p) for t, r, p in zip((ours, theirs), sides, both_at(*sides, level), strict=True))
    return (mine, other) if mine is not None and other is not None else None


def _point(trajectory: Sequence[Point], rounds: Rounds, where: Passing) -> Point | None:
    [after], [part] = where.after, where.part
    if after < 0:
        return None
    start, end = trajectory[after - 1], trajectory[after]
    found = {name: float(rounds.at(name, where)[0]) for name in METRICS if getattr(end, name) is not None}
    cost = end.cost if part == 1 else start.cost + float(part) * (end.cost - start.cost)
    return Point(end.round, cost, **{name: found.get(name) for name in METRICS})  # type: ignore[arg-type]


def differences(
    met: Sequence[tuple[Point, Point]], redrawn: Sequence[tuple[Rounds, Rounds]], level: float
) -> tuple[dict[str, Difference], float]:
    """Ours minus theirs where both have the same reliability, averaged over the pairs of runs (seeds) that do; and the share of
    the draws in which any pair does. `met` is what these pairs have there as measured, `redrawn` their rounds in the draws.

    A paired bootstrap of that whole statistic: in every draw of the facts reliability is passed somewhere else, and some pairs
    pass it no more. The interval holds the middle 95 % of the draws in which any does. A pair that does not as measured is in
    neither: the mean and its interval are of the same runs.
    """
    assert len(met) == len(redrawn)
    passing = [(ours, theirs, *both_at(ours, theirs, level)) for ours, theirs in redrawn]
    compared = np.array([(mine.after > 0) & (other.after > 0) for _, _, mine, other in passing]).any(0)
    found = {}
    for name in METRICS[1:]:
        known = [(getattr(mine, name), getattr(other, name)) for mine, other in met]
        gains = np.array([ours.at(name, mine) - theirs.at(name, other) for ours, theirs, mine, other in passing])
        there = np.isfinite(gains)
        some = there.any(0)  # a draw may leave no probe, too
        drawn = np.where(there, gains, 0.0).sum(0)[some] / there.sum(0)[some]
        if drawn.size and None not in chain(*known):
            mean = fmean(mine - other for mine, other in known)
            found[name] = Difference(mean, *percentiles(drawn), redrawn[0][0].facts, len(met))
    return found, float(compared.mean())
