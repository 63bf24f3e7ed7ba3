"""The report's charts: from a run's lines to what `charts` draws. A section without data is empty."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from dft_cluster.runs import charts
from dft_cluster.runs.charts import Bar, Segment, Series
from dft_cluster.runs.formats import count, decimals, duration, finite, memory, number, share, text
from dft_cluster.runs.report_data import Json, RunData, figure, look_up, side_by_side

METRICS = ("reliability", "generality", "locality", "portability")
SIDES = ("old", "new")
PHASES = (
    "hold", "draw", "prefixes", "covariance", "keys", "old", "new", "exchange", "select", "apply", "edit", "search",
    "evaluate", "checkpoint", "track",
)  # fmt: skip
KINDS = {"mlp": "MLP", "attention": "attention", "other": "other"}
LANDED = {
    "conflicts": ("Conflict share", "elements that the old and the new answers pull apart"),
    "kept": ("Kept share", "elements in the core, the part of the update that is applied"),
}
LOSS_POINTS = 400


def curves(run: RunData) -> str:
    """Reliability, generality, locality and what is still old, by round: exact and token match apart."""
    panels = [_curve(run, "exact", "reliability"), _curve(run, "token", "reliability-token")]
    series = [_by_round(run, "perplexity", "perplexity", "perplexity")]
    chart = charts.lines("perplexity", "Perplexity by round", series)
    panels.append(_figure("Perplexity", "of a held-out text; lower is better", chart))
    panels.append(_throughput(run))
    return _section("Round by round", panels)


def landing(run: RunData) -> str:
    """In which layers and kinds of module the two deltas conflict, and where the kept core lies."""
    parts = [part for line in run.landed for part in line["core"].get("by_layer") or []]
    if not parts:
        return ""
    first, last = run.landed[0]["round"], run.landed[-1]["round"]
    over = f"round {first}" if first == last else f"mean of rounds {first} to {last}"
    panels: list[str] = []
    kinds = [kind for kind in KINDS if any(_kind(part) == kind for part in parts)]
    keys = _legend([(kind, KINDS[kind]) for kind in kinds])
    for field, (name, meaning) in LANDED.items():
        note = f"{meaning}, as a share of the layer; {over}"
        columns, mean = _columns(parts, field), _portion(parts, field)
        chart = charts.bars(f"{field}-by-layer", f"{name} by layer", columns, mean)
        panels.append(_figure(f"{name} by layer", note, chart, keys))
    for field, (name, _) in LANDED.items():
        chart = charts.rows(f"{field}-by-kind", f"{name} by kind", _kinds(parts, field))
        panels.append(_figure(f"{name} by kind", "as a share of all elements of that kind", chart))
    return _section("Where the update landed", panels)


def losses(run: RunData) -> str:
    """Both groups' loss per step, all rounds on one axis."""
    longest = [(line, max((len(_steps(line, side)) for side in SIDES), default=0)) for line in run.rounds]
    longest = [(line, steps) for line, steps in longest if steps]
    total = sum(steps for _, steps in longest)
    bucket = math.ceil(total / LOSS_POINTS) if total else 1
    points: dict[str, list[tuple[float, float]]] = {side: [] for side in SIDES}
    boundaries: list[tuple[float, float]] = []
    start = 0
    for line, steps in longest:
        boundaries.append((start + 1, line["round"]))
        for side in SIDES:
            points[side] += [*_buckets(_steps(line, side), start + 1, bucket), (start + steps, math.nan)]
        start += steps
    series = [Series(side, side, points[side], marked=False) for side in SIDES]
    chart = charts.lines("loss", "Loss by step", series, x_name="step", boundaries=boundaries)
    each = "" if bucket == 1 else f"; every point is the mean of {bucket} steps"
    return _figure("Training loss", f"per step; a dashed line begins each numbered round{each}", chart)


def times(run: RunData) -> str:
    """Where each round's seconds went, phase by phase."""
    parallel = any(side_by_side(line) for line in run.rounds)
    spans = [(str(line["round"]), _segments(line)) for line in run.rounds]
    spans = [(label, segments) for label, segments in spans if segments]
    totals = [
        (phase, f"{_phase_name(phase)} {duration(total)}")
        for phase in PHASES
        if (total := sum(figure(line, f"seconds.{phase}") or 0.0 for line in run.rounds))
    ]
    chart = charts.timeline("timeline", "Seconds by round and phase", spans, 2 if parallel else 1)
    order = "old and new train side by side" if parallel else "one phase after the other"
    return _figure("Timeline", f"a row per round, {order}; totals over the run in the key", chart, _legend(totals))


def resources(run: RunData) -> str:
    """Loss, timeline and the most memory that every rank held."""
    peaks: dict[str, float] = {}
    for line in run.rounds:
        for rank, size in (line.get("memory") or {}).items():
            peaks[rank] = max(peaks.get(rank, 0.0), finite(size) or 0.0)
    bars = [
        (rank, next((side for side in SIDES if rank.startswith(side)), "other"), size, memory(size))
        for rank, size in sorted(peaks.items(), key=_rank_order)
    ]
    chart = charts.rows("memory", "Peak memory by rank", bars)
    left = losses(run) + _figure("Memory by rank", "the peak over all rounds", chart)
    panels = [f'<div class="stack">{left}</div>' if left else "", times(run)]
    return _section("Training", panels)


def _section(title: str, panels: Iterable[str]) -> str:
    shown = "".join(panels)
    return f'<section><h2>{title}</h2><div class="figures">{shown}</div></section>' if shown else ""


def _figure(title: str, note: str, chart: str, keys: str = "") -> str:
    if not chart:
        return ""
    head = f"<figcaption><b>{text(title)}</b> <span>{text(note)}</span></figcaption>"
    return f"<figure>{head}{keys}{chart}</figure>"


def _legend(keys: Sequence[tuple[str, str]]) -> str:
    items = "".join(f'<li><i class="tone-{tone}"></i>{text(label)}</li>' for tone, label in keys)
    return f'<ul class="legend">{items}</ul>'


def _curve(run: RunData, protocol: str, name: str) -> str:
    series = [_by_round(run, metric, metric, f"{metric}.{protocol}") for metric in METRICS]
    if not any(one.points for one in series):
        return ""
    series.append(_by_round(run, "still old", "still-old", "still_old"))
    aimed = run.setting("converge.on", "exact") == protocol
    target = finite(run.setting("converge.reliability")) if aimed else None
    chart = charts.lines(
        name,
        f"Metrics by round, {protocol} match, percent",
        series,
        value=decimals,
        enclose=(0, 100),
        target=target,
    )
    meaning = {
        "exact": "all answer tokens right, % of probes",
        "token": "answer tokens right, mean % over probes",
    }
    dashed = "" if target is None else f"; dashed: the target, {number(target)}"
    return _figure(f"{protocol.capitalize()} match", meaning[protocol] + dashed, chart)


def _by_round(run: RunData, label: str, tone: str, key: str) -> Series:
    points = [(line["round"], value) for line in run.rounds if (value := figure(line, key)) is not None]
    return Series(label, tone, points)


def _throughput(run: RunData) -> str:
    series = [_by_round(run, side, side, f"tokens_per_second.{side}") for side in SIDES]
    chart = charts.lines("throughput", "Training tokens per second", series, enclose=(0,))
    return _figure("Throughput", "training tokens per second of each group", chart)


def _portion(parts: Sequence[Json], field: str) -> float:
    """The share of the parts' elements that `field` counts."""
    elements = sum(part["elements"] for part in parts)
    return float(sum(part[field] for part in parts) / elements) if elements else 0.0


def _kind(part: Json) -> str:
    return part["kind"] if part["kind"] in KINDS else "other"


def _columns(parts: Sequence[Json], field: str) -> list[Bar]:
    """A bar per layer, cut by kind; what lies in no layer gets a bar of its own by its kind's own name."""
    groups: dict[tuple[bool, Any], list[Json]] = {}
    for part in parts:
        loose = part["layer"] is None
        groups.setdefault((loose, part["kind"] if loose else part["layer"]), []).append(part)
    columns = []
    for (loose, label), members in sorted(groups.items()):
        elements = sum(part["elements"] for part in members) or 1
        counted = [(kind, sum(p[field] for p in members if _kind(p) == kind) / elements) for kind in KINDS]
        columns.append(Bar(str(label), [(kind, value) for kind, value in counted if value], loose))
    return columns


def _kinds(parts: Sequence[Json], field: str) -> list[tuple[str, str, float, str]]:
    rows = []
    for kind, label in KINDS.items():
        members = [part for part in parts if _kind(part) == kind]
        if members:
            portion = _portion(members, field)
            # rounds see the same elements again: the share is their mean, the size is one round's
            elements = sum({(p["layer"], p["kind"]): p["elements"] for p in members}.values())
            rows.append((label, kind, portion, f"{share(portion)} of {count(elements)}"))
    return rows


def _steps(line: Json, side: str) -> list[Any]:
    return look_up(line, f"loss.{side}", []) or []


def _buckets(values: Sequence[Any], start: int, size: int) -> list[tuple[float, float]]:
    """(step, loss), or where there are too many to draw, (middle step, mean loss) of every `size` steps."""
    points = []
    for at in range(0, len(values), size):
        known = [value for one in values[at : at + size] if (value := finite(one)) is not None]
        middle = start + at + (min(size, len(values) - at) - 1) / 2
        points.append((middle, sum(known) / len(known) if known else math.nan))
    return points


def _segments(line: Json) -> list[Segment]:
    """The phases of one round one after the other, except that in two groups old and new begin together."""
    spent = {phase: figure(line, f"seconds.{phase}") or 0.0 for phase in PHASES}
    parallel, segments, at, together = side_by_side(line), [], 0.0, 0.0
    for phase in PHASES:
        beside = parallel and phase in SIDES
        if phase == SIDES[0]:
            together = at
        start = together if beside else at
        if spent[phase] > 0:
            segments.append(Segment(phase, start, spent[phase], SIDES.index(phase) if beside else None))
        at = max(at, start + spent[phase])
    return segments


def _phase_name(phase: str) -> str:
    return {"old": "train old", "new": "train new"}.get(phase, phase)


def _rank_order(item: tuple[str, float]) -> tuple[bool, str, int]:
    """old-2 before old-10, all of the old before the new."""
    group, _, index = item[0].rpartition("-")
    return group == "new", group, int(index) if index.isdecimal() else 0
