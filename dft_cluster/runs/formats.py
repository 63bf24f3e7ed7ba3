"""How the report writes what it shows: untrusted text made safe, and numbers made readable."""

import html
import math
from typing import Any

NOTHING = "–"


def text(value: object) -> str:
    """`value` as HTML text or attribute: markup escaped, lone surrogates (no file can hold them) replaced."""
    return html.escape(str(value).encode("utf-8", "replace").decode("utf-8"))


def finite(value: Any) -> float | None:
    """`value` as a number that can be drawn, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        value = float(value)
    except OverflowError:
        return None
    return value if math.isfinite(value) else None


def decimals(value: Any, places: int = 1) -> str:
    """A number with a fixed number of decimals: metrics, which are percent already."""
    known = finite(value)
    return NOTHING if known is None else f"{known:,.{places}f}"


def number(value: Any) -> str:
    """A number with three or four telling digits, whatever its size."""
    known = finite(value)
    if known is None:
        return NOTHING
    if known == 0:
        return "0"
    if not 1e-3 <= abs(known) < 1e7:
        return f"{known:.2e}"
    if abs(known) >= 1000:
        return f"{known:,.0f}"
    return f"{known:.4g}"


def share(value: Any) -> str:
    """A fraction of one as percent."""
    known = finite(value)
    if known is None:
        return NOTHING
    percent = 100 * known
    return f"{percent:.1f} %" if percent >= 10 or percent == 0 else f"{percent:.2g} %"


def count(value: Any) -> str:
    """A count of elements or tokens, shortened to thousands, millions or billions."""
    known = finite(value)
    if known is None:
        return NOTHING
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if known >= size:
            return f"{known / size:.1f} {unit}"
    return f"{known:.0f}"


def duration(seconds: Any) -> str:
    """A time span, in the unit that it is felt in."""
    known = finite(seconds)
    if known is None:
        return NOTHING
    if known < 9.95:
        return f"{known:.2f} s" if known < 0.995 else f"{known:.1f} s"
    if known < 59.5:
        return f"{known:.0f} s"
    minutes, rest = divmod(round(known), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def memory(size: Any) -> str:
    """Bytes as MiB or GiB."""
    known = finite(size)
    if known is None:
        return NOTHING
    return f"{known / 2**30:.2f} GiB" if known >= 2**30 else f"{known / 2**20:.0f} MiB"
