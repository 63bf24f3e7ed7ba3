"""From what the cells said to the results: means over seeds, differences over facts, equal reliability, the Pareto front.

What `gather` returns is `comparison.json` as it is written; tables and pages are made of nothing else.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from statistics import fmean
from typing import Any

from dft_cluster.comparison.levels import Rounds, at_equal, at_level, differences
from dft_cluster.comparison.reading import KINDS, LIKELIER, METRICS, Json
from dft_cluster.comparison.settings import CompareSettings, sections
from dft_cluster.comparison.split import Split
from dft_cluster.comparison.statistics import (
    Outcomes,
    Point,
    difference,
    front,
    harmonic_difference,
    mean_trajectory,
    spread,
)
from dft_cluster.facts.fact import fingerprint_of
from dft_cluster.runs.report_data import figure

FIGURES = [
    *(f"{metric}.{kind}" for kind in KINDS for metric in METRICS),
    *(f"generated.{metric}" for metric in METRICS),
    *(f"likelihood.{name}" for name in (*LIKELIER, "S")),
    "still_old", "portability.token", "perplexity",
]  # fmt: skip
Key = tuple[str, str, str]
"""Model, data set, method."""
COSTS = ("device_seconds", "work_seconds", "wall_seconds", "memory", "ranks", "patch_bytes", "changed_share")


@dataclass(frozen=True)
class Cell:
    """One run of the comparison."""

    model: str
    data: str
    method: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.model}.{self.data}.{self.method}.{self.seed}"


@dataclass(frozen=True)
class Row:
    """What is known of a cell: `waiting`, `failed` or `finished`, with the reason."""

    cell: Cell
    status: str = "waiting"
    reason: str = "not run yet"
    final: Json = field(default_factory=dict)
    cost: Json = field(default_factory=dict)
    points: list[Point] = field(default_factory=list)
    outcomes: Mapping[str, Outcomes] = field(default_factory=dict)
    by_round: Mapping[str, Mapping[int, Outcomes]] = field(default_factory=dict)
    weights: str = ""
    """The fingerprint of what it began with."""
    equipment: str = ""
    """What it was computed with, on which its costs hang."""

    @property
    def finished(self) -> bool:
        return self.status == "finished"


def gather(
    settings: CompareSettings,
    splits: Mapping[str, Split],
    rows: Sequence[Row],
    search: Json,
    known: dict[Any, tuple[Json, list[Json]]] | None = None,
) -> Json:
    """Everything that the comparison says, as plain JSON values. `known` keeps what was bootstrapped, for the next call: of a
    large table it takes minutes, and a cell that finishes changes little of it."""
    known = {} if known is None else known
    groups = {
        (model, data, method): [
            row for row in rows if (row.cell.model, row.cell.data, row.cell.method) == (model, data, method)
        ]
        for model, data, method in product(settings.models, settings.data, settings.methods)
    }
    compared = {}
    for key, group in groups.items():
        reference = groups[*key[:2], settings.compared_with]
        which = (key, *(row.cell for row in (*group, *reference) if row.finished))
        if which not in known:
            known[which] = (_differences(settings, key, groups), list(_levels(settings, key, groups)))
        compared[key] = known[which]
    means = {key: mean_trajectory([row.points for row in group if row.finished]) for key, group in groups.items()}
    return {
        "name": settings.run.name,
        "models": list(settings.models),
        "data": list(settings.data),
        "methods": list(settings.methods),
        "seeds": list(settings.seeds),
        "reference": settings.compared_with,
        "on": settings.on,
        "draws": settings.draws,
        "records": {label: _records(settings, label, parted) for label, parted in splits.items()},
        "settings": settings.model_dump(mode="json"),
        "search": search,
        "summary": [_summary(key, group) | {"differences": compared[key][0]} for key, group in groups.items()],
        "levels": [one for _, levels in compared.values() for one in levels],
        "trajectories": [
            {**_labels(key), "points": [{**asdict(point), "quality": point.quality} for point in points]}
            for key, points in means.items()
        ],
        "pareto": [
            point for model in settings.models for data in settings.data for point in _pareto(model, data, means)
        ],
        "cells": [_cell(row) for row in rows],
    }


def _labels(key: Key) -> Json:
    return dict(zip(("model", "data", "method"), key, strict=True))


def _records(settings: CompareSettings, label: str, parted: Split) -> Json:
    facts = sections(settings, next(iter(settings.models)), label).get("facts", {})
    return {
        "facts": len(parted.reported),
        "path": " ".join(str(part) for part in (facts.get("path", "embedded"), facts.get("file")) if part),
        "ids": [fact.id for fact in parted.reported],
        "fingerprint": fingerprint_of(parted.reported),
        "rephrases": sum(len(fact.rephrases) for fact in parted.reported),
        "locality": sum(len(fact.locality) for fact in parted.reported),
        "left_out": parted.notes,
    }


def _summary(key: Key, rows: Sequence[Row]) -> Json:
    done = [row for row in rows if row.finished]
    return {
        **_labels(key),
        "finished": len(done),
        "cells": len(rows),
        "reasons": {row.cell.name: row.reason for row in rows if not row.finished},
        "protocols": _protocols(done),
        "figures": {name: asdict(s) for name in FIGURES if (s := spread(figure(row.final, name) for row in done))},
        "costs": {name: asdict(s) for name in COSTS if (s := spread(row.cost[name] for row in done))},
    }


def _protocols(rows: Sequence[Row]) -> list[str]:
    """The tag of every protocol that these figures were taken by."""
    tags = [
        tag
        for row in rows
        for tag in (row.final.get("protocol"), row.final.get("generated", {}).get("protocol"))
        if tag
    ]
    return list(dict.fromkeys(tags))


def _differences(settings: CompareSettings, key: Key, groups: Mapping[Key, list[Row]]) -> Json:
    """By figure, the bootstrapped difference to the reference; nothing where runs kept no outcomes fact by fact."""
    other, draws = (*key[:2], settings.compared_with), settings.draws
    if key == other:
        return {}
    ours, theirs = ({n: _by_seed(groups[side], n) for n in (*METRICS, *LIKELIER)} for side in (key, other))
    found = {
        f"{metric}.{kind}": difference(ours[metric], theirs[metric], column, draws)
        for (column, kind), metric in product(enumerate(KINDS, 1), METRICS)
    }
    found |= {f"likelihood.{name}": difference(ours[name], theirs[name], 1, draws) for name in LIKELIER}
    found["likelihood.S"] = harmonic_difference(_scores(ours), _scores(theirs), 1, draws)
    return {name: asdict(one) for name, one in found.items() if one is not None}


def _by_seed(rows: Sequence[Row], name: str) -> dict[int, Outcomes]:
    """What the finished runs kept of one metric or score."""
    return {row.cell.seed: row.outcomes[name] for row in rows if row.finished and row.outcomes.get(name)}


def _scores(kept: Mapping[str, Mapping[int, Outcomes]]) -> dict[int, list[Outcomes]]:
    """By seed, what S is made of: a data set without rephrases has no PS."""
    kinds = [kept[name] for name in LIKELIER]
    return {seed: [kind[seed] for kind in kinds if seed in kind] for seed in kept["ES"]}


def _levels(settings: CompareSettings, key: Key, groups: Mapping[Key, list[Row]]) -> Iterator[Json]:
    """What a method's trajectories have where they pass a reliability, averaged over the seeds that pass it; and beside the
    reference, seed by seed, where both have the same."""
    done = [row for row in groups[key] if row.finished and row.points]
    other = (*key[:2], settings.compared_with)
    others = {row.cell.seed: row for row in groups[other] if row.finished and row.points} if key != other else {}
    pairs = [(row, others[row.cell.seed]) for row in done if row.cell.seed in others]
    redrawn = [_redrawn(settings, pair) for pair in pairs]
    for level in settings.levels:
        passed = [one for row in done if (one := at_level(row.points, level)) is not None]
        means = {name: spread(getattr(one, name) for one in passed) for name in (*METRICS, "cost")}
        there = [at_equal(ours.points, theirs.points, level) for ours, theirs in pairs]
        met = [both for both in there if both is not None]
        drawn = [sides for both, sides in zip(there, redrawn, strict=True) if both is not None and sides is not None]
        cost, reference = (sum(both[side].cost for both in met) for side in (0, 1))
        gained, share = differences(met, drawn, level) if met and len(drawn) == len(met) else ({}, None)
        yield {
            **_labels(key),
            "level": level,
            "passed": len(passed),
            "seeds": len(done),
            "from_the_start": bool(done) and all(row.points[0].reliability > level for row in done),
            "compared": len(met),
            "pairs": len(pairs),
            "compared_at": fmean(both[0].reliability for both in met) if met else None,
            "differences": {name: asdict(one) for name, one in gained.items()},
            "compared_share": share,
            "top": max((point.reliability for row in done for point in row.points), default=None),
            **{name: asdict(one) if one else None for name, one in means.items()},
            "reference_cost_ratio": reference / cost if cost else None,
        }


def _redrawn(settings: CompareSettings, pair: tuple[Row, Row]) -> tuple[Rounds, Rounds] | None:
    """Their rounds in draws of the facts; None where a run kept no outcomes, or there are not two facts to draw from."""
    column = 1 + KINDS.index(settings.on)
    ours, theirs = (Rounds.redrawn(row.points, row.by_round, column, settings.draws) for row in pair)
    return None if ours is None or theirs is None or min(ours.facts, theirs.facts) < 2 else (ours, theirs)


def _pareto(model: str, data: str, means: Mapping[Key, list[Point]]) -> list[Json]:
    """Rounds that no other round of any method beats in cost and quality."""
    points = [(key, point) for key, one in means.items() if key[:2] == (model, data) for point in one if point.taught]
    best = front([(point.cost, point.quality) for _, point in points])
    return [
        {**_labels(points[place][0]), **asdict(points[place][1]), "quality": points[place][1].quality} for place in best
    ]


def _cell(row: Row) -> Json:
    told = {**asdict(row.cell), "name": row.cell.name, "status": row.status, "reason": row.reason}
    if row.finished:
        known = {name: figure(row.final, name) for name in FIGURES}
        told |= {
            "round": row.final.get("round"),
            "figures": {name: value for name, value in known.items() if value is not None},
            "protocols": _protocols([row]),
            "costs": row.cost,
            "equipment": row.equipment,
            "points": [asdict(point) for point in row.points],
        }
    return told


def of(found: Json, table: str, **labels: Any) -> list[Json]:
    """The entries of one part of the results with these labels."""
    return [one for one in found[table] if all(one[name] == value for name, value in labels.items())]
