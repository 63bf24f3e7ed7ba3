"""Numbers, labels, ticks and tones of the report: what can be read, and what does not overlap."""

import itertools
import math
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dft_cluster.runs import charts
from dft_cluster.runs.formats import NOTHING, count, decimals, duration, memory, number, share, text
from dft_cluster.runs.report_style import CSS


def test_numbers_read_well() -> None:
    assert [number(value) for value in (0, 12.3456, 1234.5, 1.25e-5, 3e9)] == [
        "0",
        "12.35",
        "1,234",
        "1.25e-05",
        "3.00e+09",
    ]
    assert [share(value) for value in (0.25, 0.05, 0.00031, 0)] == ["25.0 %", "5 %", "0.031 %", "0.0 %"]
    assert [duration(value) for value in (0.25, 9.99, 59.7, 3725)] == [
        "0.25 s",
        "10 s",
        "1 min 0 s",
        "1 h 2 min",
    ]
    assert [count(value) for value in (999, 41230, 134.5e6)] == ["999", "41.2 k", "134.5 M"]
    assert [memory(value) for value in (5 * 2**20, 3 * 2**29)] == ["5 MiB", "1.50 GiB"]
    assert decimals(1234.56) == "1,234.6"
    assert decimals(None) == number("7") == share(math.nan) == count(True) == NOTHING
    assert text("<a b='c'>") == "&lt;a b=&#x27;c&#x27;&gt;"


@given(st.lists(st.floats(0, 200), min_size=1, max_size=6))
def test_labels_never_overlap_nor_leave_the_chart(places: list[float]) -> None:
    moved = charts.spread(places, 0, 200, 15)
    ordered = sorted(moved)
    assert all(later - earlier >= 15 - 1e-9 for earlier, later in itertools.pairwise(ordered))
    assert ordered[0] >= -1e-9
    assert ordered[-1] <= 200 + 1e-9


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6))
@example(0.0, 5e-324)
@example(1e6, 1e-10)
def test_ticks_enclose_their_values_evenly(low: float, span: float) -> None:
    ticks = charts.ticks(low, low + span)
    slack = 1e-9 * max(1.0, abs(low), span)
    assert ticks[0] <= low + slack
    assert ticks[-1] >= low + span - slack
    assert 2 <= len(ticks) <= 7
    assert len(set(ticks)) == len(ticks)


@given(st.integers(0, 50), st.integers(0, 100_000))
def test_whole_ticks_are_few_and_inside(low: int, span: int) -> None:
    ticks = charts.whole_ticks(low, low + span)
    assert ticks == sorted(set(ticks))
    assert all(low <= tick <= low + span for tick in ticks)
    assert 1 <= len(ticks) <= 10


def luminance(colour: str) -> float:
    """WCAG's relative luminance of #rgb or #rrggbb."""
    digits = colour[1:] if len(colour) == 7 else "".join(digit * 2 for digit in colour[1:])
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_every_tone_can_be_read_on_the_paper(scheme: int) -> None:
    palette = dict(re.findall(r"--(\w+): (#\w+);", CSS.split("@media")[scheme]))
    paper = luminance(palette.pop("paper"))
    inks = {name: luminance(colour) for name, colour in palette.items() if name not in ("rule", "shade")}
    contrast = {name: (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) for name, ink in inks.items()}
    assert len(contrast) == 9
    assert {name for name, ratio in contrast.items() if ratio < 4.5} == set()
