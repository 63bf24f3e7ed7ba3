"""The report in a real browser: all is drawn, nothing overlaps or spills over, no fact runs as a script."""

import html
import json
import math
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from dft_cluster.runs.report import RunData, render

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--allow-file-access-from-files",
)
DARK = "--blink-settings=preferredColorScheme=0"
HOSTILE = "</td></table><script>top.pwned = window.pwned = 1</script><img src=x onerror='top.pwned = 1'>\"&"
CHARTS = [
    "reliability",
    "reliability-token",
    "perplexity",
    "throughput",
    "conflicts-by-layer",
    "kept-by-layer",
    "conflicts-by-kind",
    "kept-by-kind",
    "loss",
    "memory",
    "timeline",
]

# The page under test is loaded as it is, in a frame of a given width; only this frame's parent runs a script.
PROBE = """<!doctype html><meta charset="utf-8"><pre id="found"></pre>
<iframe id="page" src="report.html" style="width:WIDTHpx;height:900px;border:0"></iframe>
<script>
window.onload = () => {
  const frame = document.getElementById("page"), page = frame.contentDocument, shown = frame.contentWindow;
  const box = (one) => { const r = one.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom]; };
  const charts = [...page.querySelectorAll("svg[data-chart]")].map((svg) => ({
    name: svg.dataset.chart, box: box(svg), drawn: svg.getBBox().width * svg.getBBox().height,
    words: [...svg.querySelectorAll("text")].map((one) => [one.textContent, ...box(one)]),
    marks: [...svg.querySelectorAll("path, rect, circle")].map(box)
      .filter((r) => r[2] - r[0] + r[3] - r[1] > 0).length,
  }));
  document.getElementById("found").textContent = JSON.stringify({
    charts, pwned: [window.pwned, shown.pwned].some(Boolean),
    scripts: page.querySelectorAll("script, img").length,
    text: page.body.innerText, paper: shown.getComputedStyle(page.body).backgroundColor,
    spill: page.documentElement.scrollWidth - page.documentElement.clientWidth,
  });
};
</script>"""


def browser() -> str:
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium or Chrome on this machine")
    return found


def look(page: str, folder: Path, width: int, *flags: str) -> dict[str, Any]:
    """What a browser shows of a page in a window of this width."""
    (folder / "report.html").write_text(page, encoding="utf-8")
    (folder / "probe.html").write_text(PROBE.replace("WIDTH", str(width)), encoding="utf-8")
    profile = f"--user-data-dir={folder / 'profile'}"
    command = [browser(), *FLAGS, *flags, profile, "--dump-dom", (folder / "probe.html").as_uri()]
    done = subprocess.run(command, capture_output=True, timeout=120, check=True)
    found = re.search('<pre id="found">(.*?)</pre>', done.stdout.decode("utf-8"), re.DOTALL)
    assert found, done.stderr.decode("utf-8")[-2000:]
    seen: dict[str, Any] = json.loads(html.unescape(found.group(1)))
    return seen


def overlaps(words: list[list[Any]]) -> list[tuple[str, str]]:
    """Pairs of texts that share more than a pixel both ways."""
    return [
        (one[0], other[0])
        for index, one in enumerate(words)
        for other in words[index + 1 :]
        if min(one[3], other[3]) - max(one[1], other[1]) > 1 and min(one[4], other[4]) - max(one[2], other[2]) > 4
    ]


def a_run(rounds: int, layers: int, groups: int) -> RunData:
    """Lines of a run with all that a report can show; the facts try to break out of the page."""
    metrics: list[dict[str, Any]] = []
    for index in range(rounds + 1):
        learned = 1 - math.exp(-0.8 * index)
        line: dict[str, Any] = {
            "round": index,
            "at": 60.0 * index,
            "reliability": {"token": 20 + 77 * learned, "exact": 4 + 92 * learned},
            "generality": {"token": 20 + 70 * learned, "exact": 4 + 89 * learned},
            "locality": {"token": 100 - learned, "exact": 100 - 6 * learned},
            "portability": {"token": 30 + 10 * learned, "exact": 7 + 10 * learned},
            "still_old": 84 * (1 - learned),
            "perplexity": 14 + 0.1 * index,
            "protocol": "teacher-forced, template=plain",
            "seconds": {"evaluate": 6.0},
        }
        if index:
            line["seconds"] |= {"old": 20.0, "new": 22.0, "exchange": 2.0, "select": 3.0, "apply": 0.5}
            line["seconds"] |= {"checkpoint": 4.0, "track": 0.1}
            parts = [
                {
                    "layer": layer,
                    "kind": kind,
                    "elements": size,
                    "conflicts": size // (3 + layer % 3),
                    "kept": size // 20,
                }
                for layer in range(layers)
                for kind, size in (("mlp", 2_600_000), ("attention", 880_000), ("norm", 1_000))
            ]
            parts += [
                {"layer": None, "kind": kind, "elements": 28_000_000, "conflicts": 3_000_000, "kept": 500_000}
                for kind in ("embedding", "head", "norm")
            ]
            line["core"] = {"conflict_share": 0.3, "kept_share": 0.05, "threshold": 1e-4, "by_layer": parts}
            line["loss"] = {side: [4 * math.exp(-step / 9) for step in range(30)] for side in ("old", "new")}
            line["tokens"] = {"old": 40_000, "new": 41_000}
            line["tokens_per_second"] = {"old": 1800.0, "new": 1830.0}
            line["memory"] = {f"{side}-{rank}": 2 * 2**30 for side in ("old", "new") for rank in range(2)}
        metrics.append(line)
    metrics.append({"stop_reason": HOSTILE, "rounds": rounds, "best_round": rounds, "seconds": 60.0 * rounds})
    record = {
        "name": HOSTILE,
        "config": {
            "cluster": {"groups": groups},
            "model": {"name": HOSTILE},
            "converge": {"reliability": 90.0},
        },
        "notes": [HOSTILE],
    }
    said = dict.fromkeys(("prompt", "old", "new", "before", "after", "key_old", "key_new", "kind"), HOSTILE)
    return RunData.from_texts(record, metrics, [said] * 3, [said] * 3)


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize(("rounds", "layers", "groups"), [(1, 2, 2), (5, 30, 2), (24, 80, 1)])
def test_every_chart_is_drawn_and_no_text_overlaps_or_spills(
    tmp_path: Path, width: int, rounds: int, layers: int, groups: int
) -> None:
    seen = look(render(a_run(rounds, layers, groups)), tmp_path, width)
    assert sorted(chart["name"] for chart in seen["charts"]) == sorted(CHARTS)
    for chart in seen["charts"]:
        left, top, right, bottom = chart["box"]
        assert right - left > 250, chart["name"]
        assert bottom - top > 20, chart["name"]
        assert right <= width, chart["name"]
        assert chart["drawn"] > 0, chart["name"]
        assert chart["marks"] > 0, chart["name"]
        assert not overlaps(chart["words"]), chart["name"]
        for words, *place in chart["words"]:
            inside = place[0] >= left - 1 and place[1] >= top - 1 and place[2] <= right + 1 and place[3] <= bottom + 1
            assert inside, (chart["name"], words)
    assert seen["spill"] <= 0


def test_a_script_in_a_fact_stays_text(tmp_path: Path) -> None:
    page = render(a_run(1, 2, 2))
    # without the page's own policy, so that escaping alone has to hold
    bare, policies = re.subn('<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    assert policies == 1
    for one in (page, bare):
        seen = look(one, tmp_path, 1280)
        assert not seen["pwned"]
        assert seen["scripts"] == 0
        assert seen["text"].count("<script>top.pwned") >= 15


def test_the_browser_check_itself_would_notice_a_script(tmp_path: Path) -> None:
    seen = look("<body><script>top.pwned = 1</script></body>", tmp_path, 1280)
    assert seen["pwned"]
    assert seen["scripts"] == 1


def test_the_page_follows_the_readers_dark_mode(tmp_path: Path) -> None:
    page = render(a_run(1, 2, 2))
    assert look(page, tmp_path, 1280)["paper"] == "rgb(255, 255, 255)"
    assert look(page, tmp_path, 1280, DARK)["paper"] == "rgb(20, 23, 27)"
