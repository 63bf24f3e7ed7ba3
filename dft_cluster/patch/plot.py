"""A picture of where a patch lands: a cell per layer and module kind, darker where more was changed."""

from pathlib import Path
from xml.sax.saxutils import escape

from dft_cluster.patch.atomic import apart, new_file
from dft_cluster.patch.inspect import NO_LAYER, Count, Inspection

NAMESPACE = "http://www.w3.org/2000/svg"
CELL = 18
LEFT = 260
TOP = 64
LIGHT, DARK = (238, 242, 247), (12, 60, 120)


def plot(seen: Inspection, out: Path | str) -> None:
    """Write the picture as an SVG file that needs nothing else."""
    apart(Path(out), seen.path)
    with new_file(Path(out)) as file:
        file.write(svg(seen).encode())


def svg(seen: Inspection) -> str:
    """Columns are layers (first what is in none), rows module kinds; the scale ends at the largest share."""
    layers, kinds = list(seen.by_layer), list(seen.by_kind)
    largest = max((count.share for count in seen.grid.values()), default=0.0)
    width, height = LEFT + CELL * max(len(layers), 12) + 20, TOP + CELL * len(kinds) + 70
    title = f"{seen.total.changed} of {seen.total.elements} elements changed ({seen.total.share:.4%})"
    parts = [
        f'<svg xmlns="{NAMESPACE}" width="{width}" height="{height}" font-family="sans-serif">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        _text(10, 24, title, size=15),
    ]
    for column, layer in enumerate(layers):
        label = "none" if layer == NO_LAYER else layer
        if column % 4 == 0 or len(layers) <= 12:
            parts.append(_text(LEFT + column * CELL + CELL // 2, TOP - 8, label, anchor="middle"))
    for row, kind in enumerate(kinds):
        y = TOP + row * CELL
        parts.append(_text(LEFT - 8, y + 13, kind, anchor="end"))
        for column, layer in enumerate(layers):
            count = seen.grid.get((layer, kind))
            if count is not None:
                parts.append(_cell(LEFT + column * CELL, y, count, largest, f"layer {layer}, {kind}"))
    parts.append(_text(LEFT, TOP + len(kinds) * CELL + 34, f"white: 0 %   dark: {largest:.4%} of the elements"))
    return "\n".join([*parts, "</svg>", ""])


def _cell(x: int, y: int, count: Count, largest: float, label: str) -> str:
    depth = count.share / largest if largest else 0.0
    colour = ",".join(str(round(a + (b - a) * depth)) for a, b in zip(LIGHT, DARK, strict=True))
    tip = _clean(f"{label}: {count.changed} of {count.elements} ({count.share:.4%})")
    square = f'x="{x}" y="{y}" width="{CELL - 1}" height="{CELL - 1}"'
    return f'<rect {square} fill="rgb({colour})"><title>{tip}</title></rect>'


def _text(x: int, y: int, text: str, size: int = 11, anchor: str = "start") -> str:
    return f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}">{_clean(text)}</text>'


def _clean(text: str) -> str:
    """XML allows no control characters, not even escaped ones."""
    return escape("".join(c for c in text if c.isprintable()))
