"""A run's report: one HTML page that needs nothing but itself.

The page holds its style sheet and its charts, asks no network for anything and runs no script (its own
content policy forbids both). Facts, names and settings are untrusted text, escaped wherever they appear.
"""

import json
from typing import Any

from dft_cluster.runs import report_figures, report_tables
from dft_cluster.runs.formats import count, decimals, duration, text
from dft_cluster.runs.report_data import Json, RunData, figure, look_up
from dft_cluster.runs.report_style import CSS

__all__ = ["RunData", "render"]

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
MEANING = {
    "reliability": "the prompts themselves",
    "generality": "the same, asked in other words",
    "locality": "what must not change",
    "portability": "what follows from the new answers",
}


def render(run: RunData) -> str:
    """The whole page. The same run gives the same page, byte for byte."""
    sections = (
        report_figures.curves(run),
        report_tables.answers(run),
        report_figures.landing(run),
        report_figures.resources(run),
        report_tables.pairs(run),
        report_tables.rounds(run),
    )
    main = "\n".join(section for section in sections if section)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,">\n<title>{text(_name(run))}</title>\n<style>{CSS}</style>\n</head>\n'
        f"<body>\n{_header(run)}\n<main>\n{main}\n</main>\n{_footer(run)}\n</body>\n</html>\n"
    )


def _header(run: RunData) -> str:
    parts = [f"<h1>{text(_name(run))}</h1>"]
    what = [run.setting("method.name"), run.setting("model.name")]
    if run.end.get("seconds") is not None:
        what.append(duration(run.end["seconds"]))
    parts.append(f'<p class="run">{" · ".join(text(one) for one in what if one)}</p>')
    parts.append(f'<p class="stop">{_stop(run)}</p>')
    notes = "".join(f"<li>{text(note)}</li>" for note in run.record.get("notes") or [])
    parts.append(f'<ul class="notes">{notes}</ul>' if notes else "")
    parts.append(_headline(run))
    parts.append(_setup(run))
    return f"<header>{''.join(parts)}</header>"


def _stop(run: RunData) -> str:
    """Why the run ended and what it kept, in a sentence."""
    if not run.end:
        done = run.rounds[-1]["round"] if run.rounds else None
        where = f"round {done} is the last one finished" if done else "no round is finished yet"
        return f"Still running: {where}."
    done = run.end.get("rounds", len(run.rounds) - 1)
    reason = text(str(run.end.get("stop_reason", "")).rstrip("."))
    said = f"Stopped after {done} round{'' if done == 1 else 's'}: {reason}."
    kept = run.kept.get("round")
    return said if kept in (None, 0, done) else f"{said} Kept: round {kept}."


def _headline(run: RunData) -> str:
    """Each metric before and after, by every protocol it was measured with."""
    tiles = []
    for metric, meaning in MEANING.items():
        rows = [
            f'<p class="{name}"><b>{change}</b> <span>{name}</span></p>'
            for name, key in (
                ("exact", f"{metric}.exact"),
                ("token", f"{metric}.token"),
                ("generated", f"generated.{metric}"),
            )
            if (change := _change(run.before, run.after, key))
        ]
        if rows:
            title = f"<h3>{metric.capitalize()} <span>{meaning}</span></h3>"
            tiles.append(f'<div class="tone-{metric}" data-headline="{metric}">{title}{"".join(rows)}</div>')
    if not tiles:
        return ""
    return f'<div class="headline">{"".join(tiles)}</div>{report_tables.protocols(run.rounds)}'


def _change(before: Json, after: Json, key: str) -> str:
    old, new = figure(before, key), figure(after, key)
    if new is None:
        return ""
    start = "" if old is None else f"<s>{decimals(old)} →</s> "
    return f"{start}{decimals(new)} %"


def _setup(run: RunData) -> str:
    """The settings that shape the outcome, in one line."""
    elements = next((look_up(line, "core.elements") for line in run.landed), None)
    known: list[tuple[str, Any]] = [
        ("T", run.setting("method.top")),
        ("of", run.setting("method.of")),
        ("λ", run.setting("method.scale")),
        ("scope", run.setting("method.scope")),
        ("elements", count(elements) if elements else None),
        ("groups", run.setting("cluster.groups") or run.record.get("groups") or 2),
        ("ranks per group", run.setting("cluster.ranks_per_group")),
        ("seed", run.setting("train.seed")),
    ]
    items = "".join(f"<div><dt>{name}</dt><dd>{text(value)}</dd></div>" for name, value in known if value is not None)
    return f'<dl class="setup">{items}</dl>' if items else ""


def _footer(run: RunData) -> str:
    record = run.record
    known: list[tuple[str, Any]] = [("seed", run.setting("train.seed")), ("base", record.get("base"))]
    known += [(f"fingerprint of {what}", mark) for what, mark in (record.get("fingerprints") or {}).items()]
    versions = ", ".join(f"{name} {at}" for name, at in (record.get("versions") or {}).items())
    known.append(("versions", versions or None))
    known.append(("stop reason", run.end.get("stop_reason")))
    items = "".join(
        f"<dt>{text(name)}</dt><dd><code>{text(value)}</code></dd>" for name, value in known if value is not None
    )
    config = json.dumps(record.get("config") or {}, indent=2, ensure_ascii=False, default=str)
    details = f"<details><summary>The resolved config</summary><pre>{text(config)}</pre></details>"
    return f"<footer><dl>{items}</dl>{details}</footer>"


def _name(run: RunData) -> str:
    return str(run.record.get("name") or "run")
