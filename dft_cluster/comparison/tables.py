"""The results as tables of text, for Markdown, HTML and W&B alike."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dft_cluster.comparison.reading import KINDS, LIKELIER, METRICS, Json
from dft_cluster.comparison.results import COSTS, FIGURES, of
from dft_cluster.runs.formats import NOTHING, decimals, duration, memory, number, share

LABELS = ("model", "data", "method", "seed", "status", "reason", "round")
SCORES = (*LIKELIER, "S")


@dataclass(frozen=True)
class Table:
    """A title, what to know about it, columns as (group, name), and rows of text, the first cell naming the row."""

    name: str
    title: str
    note: str
    columns: Sequence[tuple[str, str]]
    rows: Sequence[Sequence[str]]


def tables(found: Json, model: str) -> list[Table]:
    """All tables of one model; those without a figure are left out."""
    made = [
        *(_results(found, model, data) for data in found["data"]),
        _likelihood(found, model),
        *(_differences(found, model, kind) for kind in KINDS),
        _likelihood_differences(found, model),
        _seconds(found, model),
        *(_levels(found, model, data) for data in found["data"]),
        *(_level_differences(found, model, data) for data in found["data"]),
        *(_pareto(found, model, data) for data in found["data"]),
    ]
    return [table for table in made if any(cell != NOTHING for row in table.rows for cell in row[1:])]


def _by_method(found: Json, model: str, cells: Callable[[Json], list[str]]) -> list[list[str]]:
    """A row per method: the cells of every data set side by side."""
    rows = []
    for method in found["methods"]:
        row = [method]
        for data in found["data"]:
            [one] = of(found, "summary", model=model, data=data, method=method)
            row += cells(one)
        rows.append(row)
    return rows


COST_COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "device_seconds": ("device-seconds", decimals),
    "wall_seconds": ("wall time", duration),
    "ranks": ("ranks", number),
    "memory": ("peak memory", memory),
    "patch_bytes": ("patch", memory),
    "changed_share": ("weights changed", share),
}


def _results(found: Json, model: str, data: str) -> Table:
    """What every method reached, and beside it what that cost."""
    rows = []
    for method in found["methods"]:
        [one] = of(found, "summary", model=model, data=data, method=method)
        figures = [plus_minus(one["figures"].get(f"{metric}.{kind}")) for kind in KINDS for metric in METRICS]
        if figures[0] == NOTHING:
            figures[0] = state(one)
        costs = [form(one["costs"].get(name, {}).get("mean")) for name, (_, form) in COST_COLUMNS.items()]
        rows.append([method, f"{one['finished']}/{one['cells']}", *figures, *costs])
    columns = [
        ("", "seeds"),
        *((kind, metric) for kind in KINDS for metric in METRICS),
        *(("", title) for title, _ in COST_COLUMNS.values()),
    ]
    note = (
        "token: answer tokens right, mean over probes; exact: probes with all answer tokens right; in percent, mean ± standard "
        "deviation over seeds (n − 1); device-seconds: seconds × ranks that the rounds up to the kept one spent on the weights; "
        "wall time: the whole run; peak memory: of one rank; costs are means over seeds"
    )
    return Table(f"results-{data}", f"Results, {data}", note, columns, rows)


def _likelihood(found: Json, model: str) -> Table:
    columns = [(data, name) for data in found["data"] for name in SCORES]
    rows = _by_method(
        found, model, lambda one: [plus_minus(one["figures"].get(f"likelihood.{name}")) for name in SCORES]
    )
    note = (
        "the new answer likelier than the old: by prompts (ES), by rephrases (PS); neighbours keep theirs (NS); harmonic "
        "mean (S); in percent"
    )
    return Table("likelihood", "Likelihood", note, columns, rows)


def _differences(found: Json, model: str, kind: str) -> Table:
    def cells(one: Json) -> list[str]:
        return _intervals([one["differences"].get(f"{metric}.{kind}") for metric in METRICS])

    columns = [(data, name) for data in found["data"] for name in ("seeds", *METRICS)]
    title = f"Difference to {found['reference']}, {kind} match"
    return Table(f"differences-{kind}", title, _bootstrapped(found), columns, _by_method(found, model, cells))


def _likelihood_differences(found: Json, model: str) -> Table:
    def cells(one: Json) -> list[str]:
        return _intervals([one["differences"].get(f"likelihood.{name}") for name in SCORES])

    columns = [(data, name) for data in found["data"] for name in ("seeds", *SCORES)]
    note = (
        f"{_bootstrapped(found)}; S: that of each run, from its ES, PS and NS over the same drawn facts; {NOTHING}: its runs "
        "kept no outcomes probe by probe"
    )
    title = f"Difference to {found['reference']}, likelihood"
    return Table("differences-likelihood", title, note, columns, _by_method(found, model, cells))


def _bootstrapped(found: Json) -> str:
    return (
        f"points above {found['reference']}, with 95 % intervals: paired bootstrap over facts, {found['draws']} draws, "
        "averaged over the seeds that both have"
    )


def _intervals(differences: Sequence[Json | None]) -> list[str]:
    """How many seeds both have, and the differences."""
    seeds = next((str(one["seeds"]) for one in differences if one), NOTHING)
    return [seeds, *map(interval, differences)]


def _seconds(found: Json, model: str) -> Table:
    columns = [(data, f"{found['records'][data]['facts']} facts") for data in found["data"]]
    rows = _by_method(found, model, lambda one: [plus_minus(one["costs"].get("work_seconds"))])
    note = "wall seconds that the rounds up to the kept one spent on the weights (no evaluation, no checkpoints)"
    return Table("seconds", "Seconds of an update", note, columns, rows)


def _levels(found: Json, model: str, data: str) -> Table:
    levels = sorted({one["level"] for one in found["levels"]})
    columns = [(f"reliability {level:g} %", name) for level in levels for name in (*METRICS, "device-seconds")]
    rows = []
    for method in found["methods"]:
        row = [method]
        for level in levels:
            [one] = of(found, "levels", model=model, data=data, method=method, level=level)
            row += [plus_minus(one[name]) for name in (*METRICS, "cost")]
            if not one["passed"]:
                row[-4] = _not_passed(one)
            elif one["passed"] < one["seeds"]:
                row[-4] += f" ({one['passed']} of {one['seeds']} seeds)"
        rows.append(row)
    note = (
        f"{found['on']} match; on the straight line between the first two measured rounds that bracket the reliability, "
        f"seed by seed (a first round that passes it counts as it is, above the level); never extrapolated"
    )
    return Table(f"levels-{data}", f"At equal reliability, {data}", note, columns, rows)


def _level_differences(found: Json, model: str, data: str) -> Table:
    levels = sorted({one["level"] for one in found["levels"]})
    columns = [(f"reliability {level:g} %", name) for level in levels for name in ("at", *METRICS[1:], "cost")]
    rows = []
    for method in found["methods"]:
        row = [method]
        for level in levels:
            [one] = of(found, "levels", model=model, data=data, method=method, level=level)
            gains = [interval(one["differences"].get(metric)) for metric in METRICS[1:]]
            cost = one["reference_cost_ratio"] if method != found["reference"] else None
            row += [_compared_at(one), *gains, NOTHING if cost is None else f"×{cost:.2f}"]
        rows.append(row)
    note = (
        f"points above {found['reference']} ({found['on']} match) where both have the same reliability, with 95 % intervals: "
        f"paired bootstrap over facts, {found['draws']} draws, in each of which the way to it is found anew; at: "
        f"that reliability, above the level where one of the two passes it in its first round, which counts as it is; in "
        f"brackets: how many of the seeds that both have, and in how many draws, both pass one, where not all; "
        f"cost: how many times the device-seconds of these {found['reference']} takes to it"
    )
    title = f"Difference to {found['reference']} at equal reliability, {data}"
    return Table(f"level-differences-{data}", title, note, columns, rows)


def _compared_at(one: Json) -> str:
    """Where two methods are compared, and how much of what was measured says so."""
    if one["compared_at"] is None:
        return NOTHING
    seeds, share = one["compared"], one["compared_share"]
    some = [
        *([f"{seeds} of {one['pairs']} seeds"] if seeds < one["pairs"] else []),
        *([f"{share:.0%} of draws"] if share is not None and share < 0.995 else []),
    ]
    return decimals(one["compared_at"]) + (f" ({', '.join(some)})" if some else "")


def _not_passed(one: Json) -> str:
    if not one["seeds"]:
        return NOTHING
    return "above from the start" if one["from_the_start"] else f"not reached (top {decimals(one['top'])})"


def _pareto(found: Json, model: str, data: str) -> Table:
    rows = [
        [f"{one['method']}, round {one['round']}", *(decimals(one[name]) for name in ("cost", "quality", *METRICS))]
        for one in of(found, "pareto", model=model, data=data)
    ]
    columns = [("", name) for name in ("device-seconds", "quality", *METRICS)]
    note = (
        f"rounds that no round of any method beats in both cost and quality, the harmonic mean of reliability, generality "
        f"and locality ({found['on']})"
    )
    return Table(f"pareto-{data}", f"Pareto front, {data}", note, columns, rows)


def searches(found: Json) -> list[Table]:
    """Every trial of every search, the chosen setting marked."""
    made = []
    for name, one in found["search"].get("searches", {}).items():
        rows = []
        for trial in one["trials"]:
            mark = " ★" if {**trial["setting"], "converge.keep": trial["round"]} == one["chosen"] else ""
            figures = [decimals(trial["token"].get(metric)) for metric in METRICS]
            outcome = figures if trial["token"] else [f"failed: {trial['reason']}", NOTHING, NOTHING]
            best = NOTHING if trial["round"] is None else str(trial["round"])
            rows.append([f"{trial['number']}{mark}", spell(trial["setting"]), str(trial["facts"]), best, *outcome,
                         decimals(trial["device_seconds"])])  # fmt: skip
        note = f"{one['ended'] or 'under way'}; {decimals(one['device_seconds'])} device-seconds spent"
        columns = [("", column) for column in ("setting", "facts", "round", *METRICS, "device-seconds")]
        made.append(Table(f"search-{name}", f"Search {name}", note, columns, rows))
    return made


def spell(setting: Json) -> str:
    return ", ".join(f"{key}={value}" for key, value in setting.items()) or "as configured"


def state(one: Json) -> str:
    """What a method without a finished cell is: failed, or not run yet."""
    failed = any(reason != "not run yet" for reason in one["reasons"].values())
    return "failed" if failed else "not run yet"


def plus_minus(spread: Json | None) -> str:
    if spread is None:
        return NOTHING
    return decimals(spread["mean"]) + ("" if spread["std"] is None else f" ± {decimals(spread['std'])}")


def interval(difference: Json | None) -> str:
    if difference is None:
        return NOTHING
    return f"{difference['mean']:+.1f} [{difference['low']:+.1f}, {difference['high']:+.1f}]"


def flat(found: Json) -> tuple[list[str], list[list[Any]]]:
    """Every cell as one row of values: its labels, figures and costs, and the protocols of the figures."""
    columns = [*LABELS, *FIGURES, *COSTS, "protocols"]
    rows = []
    for cell in found["cells"]:
        known = {
            **cell.get("figures", {}),
            **cell.get("costs", {}),
            **cell,
            "protocols": "; ".join(cell.get("protocols", [])),
        }
        rows.append([known.get(column) for column in columns])
    return columns, rows
