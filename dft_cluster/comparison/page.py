"""`comparison.html`: one page that needs nothing but itself, in the style of a run's report."""

from collections.abc import Sequence
from itertools import groupby

from dft_cluster.comparison import words
from dft_cluster.comparison.reading import Json
from dft_cluster.comparison.results import of
from dft_cluster.comparison.tables import Table, searches, tables
from dft_cluster.runs import charts
from dft_cluster.runs.charts import Series
from dft_cluster.runs.formats import decimals, text
from dft_cluster.runs.report import POLICY
from dft_cluster.runs.report_style import CSS

TONES = ("reliability", "locality", "generality", "portability", "apply", "checkpoint", "track")
"""Tones of methods, in turn. Markers repeat after five, so that no two of 35 methods look alike."""


def render(found: Json) -> str:
    """The whole page. The same results give the same page, byte for byte."""
    body = "\n".join([_header(found), *(_model(found, model) for model in found["models"]), _trials(found)])
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,">\n<title>{text(found["name"])}</title>\n<style>{CSS}</style>\n</head>\n'
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _header(found: Json) -> str:
    done = sum(cell["status"] == "finished" for cell in found["cells"])
    missing = "".join(f"<li>{text(name)}: {text(reason)}</li>" for name, reason in words.unfinished(found).items())
    used = "".join(f"<li>{text(line.removeprefix('- '))}</li>" for line in words.records(found).splitlines())
    rule = "".join(f"<p>{text(line.removeprefix('- '))}</p>" for line in words.chosen(found)) if found["search"] else ""
    return (
        f"<header><h1>{text(found['name'])}</h1><p>{done} of {len(found['cells'])} runs finished</p>"
        f"{f'<ul class=notes>{missing}</ul>' if missing else ''}<ul>{used}</ul>{rule}</header>"
    )


def _model(found: Json, model: str) -> str:
    figures = "".join(_cost(found, model, data) + _balance(found, model, data) for data in found["data"])
    told = [*(f"Protocol: {tag}" for tag in words.protocols(found, model)), *words.unlike_costs(found, model)]
    tags = "".join(f"<p>{text(line)}.</p>" for line in told)
    shown = "".join(_table(table) for table in tables(found, model))
    return f'<section><h2>{text(model)}</h2><div class="figures">{figures}</div>{shown}{tags}</section>'


def _trials(found: Json) -> str:
    made = "".join(_table(table) for table in searches(found))
    return f"<section><h2>Trials</h2>{made}</section>" if made else ""


def _cost(found: Json, model: str, data: str) -> str:
    """Quality by cost along the trajectories, and the Pareto front of them all."""
    front = [(one["cost"], one["quality"]) for one in of(found, "pareto", model=model, data=data)]
    series = [*_series(found, model, data, "cost", "quality"), Series("front", "front", front, marked=False)]
    chart = charts.lines(
        f"cost-{model}-{data}", f"Quality by device-seconds, {data}", series, value=decimals, x_name="device-seconds",
    )  # fmt: skip
    note = (
        "harmonic mean of reliability, generality and locality by device-seconds, a mark per measured round; the Pareto front, "
        "dashed, is what no round beats in both"
    )
    return _figure(f"Cost against quality, {data}", note, chart)


def _balance(found: Json, model: str, data: str) -> str:
    """Generality by locality along the trajectories."""
    chart = charts.lines(
        f"balance-{model}-{data}", f"Generality by locality, {data}", _series(found, model, data, "locality", "generality"),
        value=decimals, x_name="locality",
    )  # fmt: skip
    return _figure(
        f"Generality against locality, {data}", "each line is a trajectory: it begins at locality 100", chart
    )


def _series(found: Json, model: str, data: str, x: str, y: str) -> list[Series]:
    made = []
    for place, method in enumerate(found["methods"]):
        [one] = of(found, "trajectories", model=model, data=data, method=method)
        points = [(point[x], point[y]) for point in one["points"] if point[x] is not None and point[y] is not None]
        made.append(Series(method, TONES[place % len(TONES)], points))
    return made


def _figure(title: str, note: str, chart: str) -> str:
    head = f"<figcaption><b>{text(title)}</b> <span>{text(note)}</span></figcaption>"
    return f"<figure>{head}{chart}</figure>" if chart else ""


def _table(table: Table) -> str:
    groups = [(name, len(list(members))) for name, members in groupby(group for group, _ in table.columns)]
    first = [at == 0 or table.columns[at - 1][0] != group for at, (group, _) in enumerate(table.columns)]
    top = "".join(f'<th scope="colgroup" colspan="{size}">{text(name)}</th>' for name, size in groups)
    names = "".join(
        f'<th scope="col"{_edge(at)}>{text(name)}</th>' for at, (_, name) in zip(first, table.columns, strict=True)
    )
    body = "".join(f'<tr><th scope="row">{text(row[0])}</th>{_cells(row[1:], first)}</tr>' for row in table.rows)
    return (
        f"<h3>{text(table.title)}</h3><p>{text(table.note)}</p>"
        f'<div class="wide" tabindex="0" role="region" aria-label="{text(table.title)}">'
        f'<table data-table="{text(table.name)}"><thead><tr><th rowspan="2"></th>{top}</tr><tr>{names}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _cells(cells: Sequence[str], first: Sequence[bool]) -> str:
    return "".join(f"<td{_edge(at)}>{text(cell)}</td>" for at, cell in zip(first, cells, strict=True))


def _edge(starts: bool) -> str:
    return ' class="edge"' if starts else ""
