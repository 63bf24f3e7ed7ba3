"""SVG charts as text: lines, stacked bars, horizontal bars, a timeline.

Every chart is 480 units wide, so that two stand side by side on a desk and one fills a phone. Colour
comes from the page's `tone-…` classes, and never alone: lines differ in marker and carry their name
at their end, bars and segments are named beside or inside them. All text is escaped here.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from dft_cluster.runs.formats import duration, number, share, text

WIDTH = 480
CHARACTER = 7.4  # the mean width of a character of the widest common sans-serif face
MARKERS = (
    "M-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0-7 0z",
    "M-3.2-3.2h6.4v6.4h-6.4z",
    "M0-4.6L4.6 0L0 4.6L-4.6 0z",
    "M0-4.2L4.2 3.4H-4.2z",
    "M-1.4-4.2h2.8v2.8h2.8v2.8h-2.8v2.8h-2.8v-2.8h-2.8v-2.8h2.8z",
)

Scale = Callable[[float], float]
Format = Callable[[float], str]
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Series:
    """One line: its name, its tone, its points. A value that is no finite number is a gap."""

    name: str
    tone: str
    points: Points
    marked: bool = True


@dataclass(frozen=True)
class Bar:
    """One bar: its label, and its parts as (tone, value) from the bottom up. Loose bars stand apart."""

    label: str
    parts: Sequence[tuple[str, float]]
    loose: bool = False


@dataclass(frozen=True)
class Segment:
    """A stretch of time in a row. `lane` None spans all lanes of its row."""

    phase: str
    start: float
    seconds: float
    lane: int | None = None


def lines(
    name: str,
    title: str,
    series: Sequence[Series],
    *,
    value: Format = number,
    enclose: Sequence[float] = (),
    x_name: str = "round",
    boundaries: Points = (),
    target: float | None = None,
) -> str:
    """Lines over a whole-numbered axis, each named with its last value at its end; the target is dashed.

    The vertical axis holds all values and those to `enclose`; a boundary is (x, the round that begins).
    """
    known = [(one, [point for point in one.points if math.isfinite(point[1])]) for one in series]
    drawn = [(one, points) for one, points in known if points]
    if not drawn:
        return ""
    xs = [x for _, points in drawn for x, _ in points]
    ys = [y for _, points in drawn for _, y in points]
    names = [f"{one.name} {value(points[-1][1])}" for one, points in drawn]
    y_ticks = ticks(min(*ys, *enclose, math.inf), max(*ys, *enclose, -math.inf))
    top, bottom, height = (28 if boundaries else 12), 216, 250
    left, right = 12 + _widest(map(number, y_ticks)), WIDTH - 14 - 1.12 * _widest(names)
    x = scale(min(xs), max(xs), left + 6, right - 4)
    y = scale(y_ticks[0], y_ticks[-1], bottom, top)
    body = [_grid(y_ticks, y, left, right), _boundaries(boundaries, x, top, bottom)]
    body += [_words("tick", x(at), bottom + 17, number(at), "middle") for at in whole_ticks(min(xs), max(xs))]
    body.append(_words("axis", WIDTH - 2, bottom + 17, x_name, "end"))
    if target is not None and y_ticks[0] <= target <= y_ticks[-1]:
        body.append(f'<path class="target" d="M{left:.1f} {y(target):.1f}H{right:.1f}"/>')
    body += [f'<path class="line tone-{one.tone}" d="{_path(one.points, x, y)}"/>' for one, _ in drawn]
    for shape, (one, points) in enumerate(drawn):
        if one.marked:
            body += [_marker(one, shape, at, (x(at[0]), y(at[1])), x_name, value) for at in points]
    places = spread([y(points[-1][1]) for _, points in drawn], top, bottom, 15)
    for (one, points), label, place in zip(drawn, names, places, strict=True):
        start = f"M{x(points[-1][0]) + 6:.1f} {y(points[-1][1]):.1f}"
        body.append(f'<path class="leader" d="{start}L{right + 6:.1f} {place:.1f}"/>')
        body.append(_words(f"name tone-{one.tone}", right + 10, place + 4, label))
    changes = (f"{one.name} from {value(at[0][1])} to {value(at[-1][1])}" for one, at in drawn)
    return svg(name, f"{title}: {'; '.join(changes)}", height, body)


def bars(name: str, title: str, columns: Sequence[Bar], mean: float) -> str:
    """Stacked columns of shares and their dashed overall mean; loose columns stand to the right."""
    if not columns:
        return ""
    totals = [sum(part for _, part in column.parts) for column in columns]
    y_ticks = ticks(0.0, max(*totals, mean))
    left, top, bottom, height = 12 + _widest(map(_percent, y_ticks)), 22, 216, 250
    y = scale(y_ticks[0], y_ticks[-1], bottom, top)
    tight = sum(not column.loose for column in columns)
    widths = [_widest([_short(column.label)]) + 8 if column.loose else 0.0 for column in columns]
    slot = min(60.0, max(2.0, (WIDTH - left - sum(widths) - 8) / max(tight, 1)))
    every = math.ceil(CHARACTER * 3 / slot)
    body, at = [_grid(y_ticks, y, left, WIDTH - 2, _percent)], left + 2
    for position, (column, total) in enumerate(zip(columns, totals, strict=True)):
        width = widths[position] or slot
        where = column.label if column.loose else f"layer {column.label}"
        parts = ", ".join(f"{tone} {share(part)}" for tone, part in column.parts)
        tip = text(f"{where}: {share(total)} ({parts})")
        body.append(f"<g><title>{tip}</title>{_stack(column, at + width / 2, min(width * 0.76, 22), y)}</g>")
        if column.loose or position % every == 0:
            body.append(_words("tick", at + width / 2, bottom + 17, _short(column.label), "middle"))
        at += width
    body.append(f'<path class="target" d="M{left:.1f} {y(mean):.1f}H{WIDTH - 2}"/>')
    body.append(_words("axis", WIDTH - 2, top - 10, f"dashed: all weights, {share(mean)}", "end"))
    if tight:
        body.append(_words("axis", left + tight * slot / 2, bottom + 32, "layer", "middle"))
    peak = max(range(len(columns)), key=totals.__getitem__)
    return svg(name, f"{title}: most at {columns[peak].label} with {share(totals[peak])}", height, body)


def rows(name: str, title: str, values: Sequence[tuple[str, str, float, str]]) -> str:
    """Horizontal bars from (label, tone, value, what to write at its end)."""
    if not values:
        return ""
    left = 12 + _widest(_short(label) for label, *_ in values)
    room = WIDTH - left - 12 - _widest(note for *_, note in values)
    longest = max(value for _, _, value, _ in values) or 1.0
    body = []
    for index, (label, tone, value, note) in enumerate(values):
        middle, width = 14 + 24 * index, room * value / longest
        body.append(_words("tick", 0, middle + 4, _short(label)))
        body.append(_box(tone, left, middle - 8, width, 16, f"{label}: {note}"))
        body.append(_words("tick", left + width + 6, middle + 4, note))
    summary = "; ".join(f"{label} {note}" for label, _, _, note in values)
    return svg(name, f"{title}: {summary}", 24 * len(values) + 6, body)


def timeline(name: str, title: str, spans: Sequence[tuple[str, Sequence[Segment]]], lanes: int) -> str:
    """One row per (round, segments), every row from its own start, on one axis of seconds."""
    ends = [max((one.start + one.seconds for one in segments), default=0.0) for _, segments in spans]
    if not ends or max(ends) <= 0:
        return ""
    lane = 15 if len(spans) <= 12 else 7
    tall = lane * lanes if lanes > 1 else round(lane * 1.4)
    left = 14 + _widest(["round", *(label for label, _ in spans)])
    x = scale(0.0, max(ends), left, WIDTH - 12 - _widest(map(duration, ends)))
    bottom = 8 + len(spans) * (tall + 8)
    body = []
    for at in (at for at in ticks(0.0, max(ends)) if at <= max(ends)):
        body.append(f'<path class="grid" d="M{x(at):.1f} 4V{bottom}"/>')
        body.append(_words("tick", x(at), bottom + 15, number(at), "middle"))
    body.append(_words("axis", WIDTH - 2, bottom + 15, "seconds", "end"))
    body.append(_words("axis", 0, bottom + 15, "round"))
    for index, ((label, segments), end) in enumerate(zip(spans, ends, strict=True)):
        y = 8 + index * (tall + 8)
        body.append(_words("tick", 0, y + tall / 2 + 4, label))
        body += [_segment(one, label, x, y, lane, tall) for one in segments]
        body.append(_words("tick", x(end) + 6, y + tall / 2 + 4, duration(end)))
    took = (f"round {label} took {duration(end)}" for (label, _), end in zip(spans, ends, strict=True))
    return svg(name, f"{title}: {'; '.join(took)}", bottom + 22, body)


def svg(name: str, label: str, height: float, body: Sequence[str]) -> str:
    """The chart's outer element, which says to those who cannot see it what it shows."""
    head = f'role="img" data-chart="{text(name)}" aria-label="{text(label)}" viewBox="0 0 {WIDTH} {height}"'
    return f"<svg {head}><title>{text(label)}</title>{''.join(body)}</svg>"


def scale(low: float, high: float, start: float, end: float) -> Scale:
    """The straight line that takes low..high to start..end; a single value goes to the start."""
    span = high - low
    return lambda value: start + (end - start) * ((value - low) / span if span else 0.0)


def ticks(low: float, high: float, most: int = 4) -> list[float]:
    """Round values a constant step apart that enclose low..high, a flat range with room around it."""
    size = max(abs(low), abs(high))
    span = high - low if high - low > 1e-9 * size else size
    raw = (span if span > 1e-300 else 1.0) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10, 20) if power * factor >= raw)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [step * index for index in range(first, max(last, first + 1) + 1)]


def whole_ticks(low: float, high: float, most: int = 8) -> list[int]:
    """Whole numbers within low..high, a round step apart."""
    step = max(1, math.ceil(ticks(0, high - low, most)[1])) if high > low else 1
    return list(range(math.ceil(low / step) * step, math.floor(high) + 1, step))


def spread(places: Sequence[float], low: float, high: float, gap: float) -> list[float]:
    """`places` moved down, then up, by no more than it takes to stand `gap` apart and above `high`."""
    order = sorted(range(len(places)), key=places.__getitem__)
    moved = list(places)
    floor, ceiling = low, high
    for index in order:
        moved[index] = max(moved[index], floor)
        floor = moved[index] + gap
    for index in reversed(order):
        moved[index] = min(moved[index], ceiling)
        ceiling = moved[index] - gap
    return moved


def _percent(value: float) -> str:
    return f"{number(100 * value)} %"


def _short(label: str) -> str:
    """A label that leaves room for what it names."""
    return label if len(label) <= 16 else f"{label[:15]}…"


def _widest(labels: Iterable[str]) -> float:
    return CHARACTER * max(len(label) for label in labels)


def _words(style: str, x: float, y: float, words: str, anchor: str = "start") -> str:
    aligned = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text class="{style}"{aligned} x="{x:.1f}" y="{y:.1f}">{text(words)}</text>'


def _box(style: str, x: float, y: float, width: float, height: float, tip: str = "") -> str:
    place = f'x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}"'
    return f'<rect class="fill tone-{style}" {place}>{f"<title>{text(tip)}</title>" if tip else ""}</rect>'


def _grid(values: Sequence[float], y: Scale, left: float, right: float, value: Format = number) -> str:
    return "".join(
        f'<path class="{"grid" if index else "base"}" d="M{left:.1f} {y(at):.1f}H{right:.1f}"/>'
        + _words("tick", left - 6, y(at) + 4, value(at), "end")
        for index, at in enumerate(values)
    )


def _boundaries(marks: Points, x: Scale, top: float, bottom: float) -> str:
    """Dashed uprights; labels only where there is room for them."""
    parts, free = [], -math.inf
    for at, begun in marks:
        parts.append(f'<path class="grid" stroke-dasharray="2 3" d="M{x(at):.1f} {top - 14}V{bottom}"/>')
        if x(at) >= free:
            parts.append(_words("tick", x(at) + 4, top - 5, number(begun)))
            free = x(at) + _widest([number(begun)]) + 10
    return "".join(parts)


def _path(points: Points, x: Scale, y: Scale) -> str:
    steps, pen = [], "M"
    for at, value in points:
        if math.isfinite(value):
            steps.append(f"{pen}{x(at):.1f} {y(value):.1f}")
        pen = "L" if math.isfinite(value) else "M"
    return "".join(steps)


def _marker(
    one: Series, shape: int, at: tuple[float, float], place: tuple[float, float], x_name: str, value: Format
) -> str:
    tip = text(f"{x_name} {number(at[0])}: {one.name} {value(at[1])}")
    mark = f'<path class="mark tone-{one.tone}" d="{MARKERS[shape % len(MARKERS)]}"/>'
    reach = '<circle class="reach" r="9"/>'
    return f'<g transform="translate({place[0]:.1f} {place[1]:.1f})"><title>{tip}</title>{reach}{mark}</g>'


def _stack(column: Bar, middle: float, thick: float, y: Scale) -> str:
    boxes, base = [], 0.0
    for tone, part in column.parts:
        boxes.append(_box(tone, middle - thick / 2, y(base + part), thick, y(base) - y(base + part)))
        base += part
    return "".join(boxes)


def _segment(one: Segment, row: str, x: Scale, y: float, lane: int, tall: int) -> str:
    start, width = x(one.start), x(one.start + one.seconds) - x(one.start)
    top, high = (y, tall) if one.lane is None else (y + lane * one.lane, lane)
    tip = f"round {row}, {one.phase}: {duration(one.seconds)}"
    box = _box(f"{one.phase} segment", start, top, width, high, tip)
    roomy = high >= 12 and width >= _widest([one.phase]) + 4
    return box + _words("inside", start + 5, top + high / 2 + 3.6, one.phase) if roomy else box
