"""The report's tables: answers before and after, training pairs, every round's figures."""

import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from dft_cluster.runs.formats import NOTHING, count, decimals, duration, number, share, text
from dft_cluster.runs.report_data import Json, RunData, figure, look_up, wall
from dft_cluster.runs.report_figures import METRICS, SIDES

SHOWN_ANSWERS = 60
SHOWN_PAIRS = 12


@dataclass(frozen=True)
class Column:
    """One column of the rounds' table: the group that heads it, its name, its cell."""

    group: str
    name: str
    cell: Callable[[Json], str]


def answers(run: RunData) -> str:
    """What the model said before and after, and whether that is the new answer now."""
    if not run.answers:
        return ""
    contains = run.setting("facts.old") == "generated"
    marks = [verdict(one, contains) for one in run.answers]
    rows = "".join(
        "<tr>"
        + "".join(
            f'<td dir="auto" data-label="{name}" class="{name}">{text(one.get(name, ""))}</td>'
            for name in ("prompt", "old", "new", "before", "after")
        )
        + f'<td data-label="now gives" class="{mark[0]}">{mark[1]}</td></tr>'
        for one, mark in zip(run.answers[:SHOWN_ANSWERS], marks, strict=False)
    )
    right = sum(mark == RIGHT for mark in marks)
    shown = _shown(len(marks), SHOWN_ANSWERS)
    note = f"{right} of the {len(marks)} sampled answers are the new ones now{shown}."
    head = "".join(f'<th scope="col">{name}</th>' for name in ("prompt", "old", "new", "before", "after", "now gives"))
    return (
        f'<section><h2>Before and after</h2><p>{note}</p><table class="cards" data-table="answers">'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></section>"
    )


RIGHT = ("right", "✓ the new")
STALE = ("stale", "↺ the old")
OTHER = ("stray", "✗ neither")


def verdict(answer: Json, contains: bool) -> tuple[str, str]:
    """Which answer `after` is, case and punctuation folded; by containment where it is a whole sentence."""
    after = fold(answer.get("after", ""))
    for key, mark in (("new", RIGHT), ("old", STALE)):
        wanted = fold(answer.get(key, ""))
        if wanted and (f" {wanted} " in f" {after} " if contains else wanted == after):
            return mark
    return OTHER


def fold(words: object) -> str:
    """Lower case, no punctuation, single spaces."""
    return " ".join(str(words).casefold().translate(str.maketrans("", "", string.punctuation)).split())


def pairs(run: RunData) -> str:
    """Some of the sentences that the two groups trained on; only the marked span differs."""
    if not run.pairs:
        return ""
    items = "".join(
        f'<li><p class="ask" dir="auto">{text(one.get("prompt", ""))}</p><dl>'
        + "".join(
            f"<dt>K<sub>{side}</sub></dt>"
            f'<dd dir="auto">{highlight(one.get(f"key_{side}", ""), one.get(side, ""), side)}</dd>'
            for side in SIDES
        )
        + f'</dl><p class="kind">{text(one.get("kind", ""))}</p></li>'
        for one in run.pairs[:SHOWN_PAIRS]
    )
    kinds = sorted({str(one.get("kind", "")) for one in run.pairs})
    meaning = {
        "swapped": "<em>swapped</em> pairs are one sentence with only the marked span exchanged",
        "short": "<em>short</em> pairs are the bare answers",
    }
    said = "; ".join(meaning[kind] for kind in kinds if kind in meaning)
    note = f"What each group learned from{_shown(len(run.pairs), SHOWN_PAIRS)}{': ' + said if said else ''}."
    listed = f'<ol class="pairs" data-table="pairs">{items}</ol>'
    return f"<section><h2>Training pairs</h2><p>{note}</p>{listed}</section>"


def highlight(sentence: object, span: object, tone: str) -> str:
    """`sentence` as HTML with every `span` in it marked."""
    if not str(span).strip():
        return text(sentence)
    pieces = re.split(f"({re.escape(str(span).strip())})", str(sentence), flags=re.IGNORECASE)
    return "".join(
        f'<mark class="tone-{tone}">{text(piece)}</mark>' if odd % 2 else text(piece)
        for odd, piece in enumerate(pieces)
    )


def rounds(run: RunData) -> str:
    """Every figure of every round, each group of columns only where some round has it."""
    lines = [*run.rounds, *([run.end["final"]] if run.end.get("final") else [])]
    columns = [one for one in _columns() if any(one.cell(line) != NOTHING for line in lines)]
    if not columns:
        return ""
    groups = [(group, len(list(members))) for group, members in groupby(columns, key=lambda one: one.group)]
    head = "".join(f'<th scope="colgroup" colspan="{size}">{text(group)}</th>' for group, size in groups)
    first = [index == 0 or columns[index - 1].group != one.group for index, one in enumerate(columns)]
    names = "".join(
        f'<th scope="col"{edge(starts)}>{text(one.name)}</th>' for one, starts in zip(columns, first, strict=True)
    )
    body = "".join(
        f'<tr><th scope="row">{_row_name(line, run)}</th>'
        + "".join(f"<td{edge(starts)}>{one.cell(line)}</td>" for one, starts in zip(columns, first, strict=True))
        + "</tr>"
        for line in lines
    )
    star = "<p>★ the round whose weights the run kept; all metrics in percent.</p>" if "★" in body else ""
    return (
        "<section><h2>All figures</h2>"
        '<div class="wide" tabindex="0" role="region" aria-label="The figures of all rounds">'
        '<table data-table="rounds"><thead>'
        f'<tr><th scope="col" rowspan="2">round</th>{head}</tr><tr>{names}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>{star}{protocols(run.rounds)}</section>"
    )


def protocols(lines: Sequence[Json]) -> str:
    """By which protocol the figures were taken, and in which rounds, where that changed."""
    seen: dict[tuple[str, str], list[int]] = {}
    for line in lines:
        for name, key in (("exact, token", "protocol"), ("generated", "generated.protocol")):
            tag = look_up(line, key)
            if tag:
                seen.setdefault((name, str(tag)), []).append(line["round"])
    several = len({name for name, _ in seen}) < len(seen)
    items = "".join(
        f"<dt>{name}</dt><dd>{text(tag)}{f' (rounds {min(at)} to {max(at)})' if several else ''}</dd>"
        for (name, tag), at in seen.items()
    )
    return f'<dl class="protocols">{items}</dl>' if items else ""


def edge(starts: bool) -> str:
    """The class of a cell that begins a group of columns."""
    return ' class="edge"' if starts else ""


def _columns() -> list[Column]:
    def plain(key: str) -> Callable[[Json], str]:
        return lambda line: decimals(figure(line, key))

    def of(key: str, form: Callable[[float | None], str]) -> Callable[[Json], str]:
        return lambda line: form(figure(line, key))

    def last_loss(side: str) -> Callable[[Json], str]:
        return lambda line: number((look_up(line, f"loss.{side}", []) or [None])[-1])

    def total(line: Json) -> str:
        return duration(wall(line)) if line.get("seconds") else NOTHING

    columns = [Column(metric, part, plain(f"{metric}.{part}")) for metric in METRICS for part in ("exact", "token")]
    columns += [Column("still", "old", plain("still_old"))]
    columns += [Column("generated", name, plain(f"generated.{name}")) for name in METRICS]
    columns += [Column("perplexity", "held text", of("perplexity", lambda value: decimals(value, 2)))]
    columns += [Column("core", name, of(f"core.{name}_share", share)) for name in ("conflict", "kept")]
    columns += [Column("core", "threshold", of("core.threshold", number))]
    columns += [Column("last loss", side, last_loss(side)) for side in SIDES]
    columns += [Column("tokens", side, of(f"tokens.{side}", count)) for side in SIDES]
    columns += [Column("tokens/s", side, of(f"tokens_per_second.{side}", count)) for side in SIDES]
    return [*columns, Column("time", "round", total), Column("time", "at", of("at", duration))]


def _row_name(line: Json, run: RunData) -> str:
    if line is run.end.get("final"):
        return "result"
    mark = " ★" if run.end and line is run.kept and line["round"] > 0 else ""
    return f"{line['round']}{mark}"


def _shown(total: int, most: int) -> str:
    return f" (the first {most} of {total} are shown)" if total > most else ""
