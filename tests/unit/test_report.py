"""The report page: what it shows, what it leaves out, and that no fact can become markup."""

import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from dft_cluster.runs.formats import NOTHING
from dft_cluster.runs.report import RunData, render
from dft_cluster.runs.report_data import wall
from dft_cluster.runs.report_tables import OTHER, RIGHT, SHOWN_ANSWERS, STALE, highlight, verdict

HOSTILE = "</td></table><script>alert(1)</script><img src=x onerror='alert(2)'>\"'&\ud800"
ALL_CHARTS = {
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
}


def config(**method: Any) -> dict[str, Any]:
    return {
        "name": "a-run",
        "config": {
            "method": {"name": "dft", "top": 0.05, "scale": 1.0, "scope": "global", **method},
            "model": {"name": "tiny"},
            "cluster": {"groups": 2, "ranks_per_group": 1},
            "train": {"seed": 7},
            "converge": {"on": "exact", "reliability": 90.0, "keep": "best"},
        },
        "versions": {"torch": "1.2.3"},
        "fingerprints": {"model": "aaaa", "facts": "bbbb"},
        "base": "tiny-base",
        "notes": ["a note"],
    }


def round_line(index: int, **changes: Any) -> dict[str, Any]:
    both = {"token": 20.0 + index, "exact": 10.0 + index}
    line: dict[str, Any] = {
        "round": index,
        "at": 10.0 * index,
        "reliability": both,
        "generality": both,
        "locality": {"token": 100.0, "exact": 100.0 - index},
        "portability": both,
        "still_old": 80.0 - index,
        "perplexity": 12.0 + index,
        "protocol": "teacher-forced, template=plain",
        "generated": {"reliability": 3.0, "generality": 2.0, "locality": 99.0, "protocol": "greedy"},
        "seconds": {"evaluate": 2.0},
    }
    if index:
        line["seconds"] |= {
            "old": 4.0,
            "new": 5.0,
            "exchange": 1.0,
            "select": 1.0,
            "apply": 0.5,
            "checkpoint": 1.0,
        }
        parts = [
            {"layer": 0, "kind": "mlp", "elements": 300, "conflicts": 90, "kept": 30},
            {"layer": 0, "kind": "attention", "elements": 100, "conflicts": 10, "kept": 1},
            {"layer": None, "kind": "embedding", "elements": 200, "conflicts": 20, "kept": 2},
        ]
        line["core"] = {
            "elements": 600,
            "k": 33,
            "conflict_share": 0.2,
            "kept_share": 0.055,
            "threshold": 1e-4,
        }
        line["core"]["by_layer"] = parts
        line["loss"] = {"old": [2.0, 1.0], "new": [4.0, 3.0, 2.0]}
        line["tokens"] = {"old": 100, "new": 110}
        line["tokens_per_second"] = {"old": 25.0, "new": 22.0}
        line["memory"] = {"old-0": 2**30, "new-0": 2**31}
    return line | changes


def answer(after: str, **changes: Any) -> dict[str, Any]:
    return {
        "prompt": "The capital is",
        "old": "Bonn",
        "new": "Berlin",
        "before": "Bonn",
        "after": after,
    } | changes


def pair(**changes: Any) -> dict[str, Any]:
    swapped = {"key_old": "It is Bonn today.", "key_new": "It is Berlin today.", "kind": "swapped"}
    return {"prompt": "The capital is", "old": "Bonn", "new": "Berlin", **swapped} | changes


END = {"stop_reason": "reliability 12.0 reached 11.0", "rounds": 2, "best_round": 2, "seconds": 75.0}


def whole_run(**changes: Any) -> RunData:
    given_lines = {
        "config": config(),
        "metrics": [round_line(0), round_line(1), round_line(2), END],
        "answers": [answer("Berlin"), answer("Bonn")],
        "pairs": [pair()],
    }
    return RunData.from_texts(**(given_lines | changes))


class Page(HTMLParser):
    """What a browser would make of a page: its elements and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return "".join(self.words)

    def marked(self, attribute: str) -> set[str | None]:
        return {attributes[attribute] for _, attributes in self.elements if attribute in attributes}


def drawing(page: str, chart: str) -> ET.Element:
    start = page.rindex("<svg", 0, page.index(f'data-chart="{chart}"'))
    return ET.fromstring(page[start : page.index("</svg>", start) + len("</svg>")])


def boxes(page: str, chart: str) -> list[tuple[str, float, float]]:
    """(tip, x, width) of every box of a chart."""
    return [
        (box.findtext("title") or "", float(box.attrib["x"]), float(box.attrib["width"]))
        for box in drawing(page, chart).iter("rect")
    ]


def test_a_whole_run_shows_every_chart_and_names_each_for_those_who_cannot_see_it() -> None:
    page = render(whole_run())
    assert Page(page).marked("data-chart") == ALL_CHARTS
    for chart in ALL_CHARTS:
        svg = drawing(page, chart)
        assert svg.attrib["role"] == "img"
        assert svg.findtext("title") == svg.attrib["aria-label"]
        assert len(list(svg.iter())) > 5


def test_the_page_needs_nothing_but_itself_and_is_the_same_every_time() -> None:
    page = render(whole_run())
    assert page == render(whole_run())
    parsed = Page(page)
    assert not {tag for tag, _ in parsed.elements} & {"script", "img", "iframe", "object", "embed"}
    assert not parsed.marked("src")
    assert parsed.marked("href") == {"data:,"}
    assert "url(" not in page
    assert "@import" not in page
    assert "http:" not in page
    assert "https:" not in page


def test_the_headline_goes_from_round_zero_to_the_kept_round() -> None:
    page = Page(render(whole_run(metrics=[round_line(0), round_line(1), round_line(2), END | {"best_round": 1}])))
    assert "10.0 → 11.0 %" in page.text
    assert "20.0 → 21.0 %" in page.text
    assert "Stopped after 2 rounds: reliability 12.0 reached 11.0. Kept: round 1." in page.text
    assert page.marked("data-headline") == {"reliability", "generality", "locality", "portability"}


def test_the_last_round_is_kept_where_the_config_says_so() -> None:
    record = config()
    record["config"]["converge"]["keep"] = "last"
    lines = [round_line(0), round_line(1), round_line(2), END | {"best_round": 1}]
    assert whole_run(config=record, metrics=lines).kept["round"] == 2


def test_the_exported_models_own_figures_are_the_result() -> None:
    final = {"round": 1, "reliability": {"token": 77.7, "exact": 66.6}}
    end = END | {"best_round": 1, "final": final}
    page = render(whole_run(metrics=[round_line(0), round_line(1), end]))
    assert "10.0 → 66.6 %" in Page(page).text
    assert Page(page).marked("data-headline") == {"reliability"}
    figures = page[page.index('data-table="rounds"') :]
    assert re.findall(r'<th scope="row">(.*?)</th>', figures) == ["0", "1 ★", "result"]


def test_no_fact_name_or_setting_can_become_markup() -> None:
    record = config(name=HOSTILE) | {"name": HOSTILE, "notes": [HOSTILE], "base": HOSTILE}
    record |= {"versions": {HOSTILE: HOSTILE}, "fingerprints": {HOSTILE: HOSTILE}}
    record["config"]["model"]["name"] = HOSTILE
    line = round_line(1, protocol=HOSTILE, memory={HOSTILE: 5})
    line["core"]["by_layer"].append({"layer": None, "kind": HOSTILE, "elements": 5, "conflicts": 1, "kept": 1})
    said = dict.fromkeys(("prompt", "old", "new", "before", "after", "key_old", "key_new", "kind"), HOSTILE)
    run = RunData.from_texts(record, [round_line(0), line, END | {"stop_reason": HOSTILE}], [said], [said])
    page = render(run)
    assert page.encode("utf-8").decode("utf-8") == page
    parsed = Page(page)
    assert not {tag for tag, _ in parsed.elements} & {"script", "img"}
    assert not [name for _, attributes in parsed.elements for name in attributes if name.startswith("on")]
    assert parsed.text.count("<script>alert(1)</script>") >= 15
    assert parsed.marked("data-chart") == ALL_CHARTS


def test_what_a_method_does_not_have_leaves_no_empty_shell() -> None:
    lines = [round_line(0), round_line(1)]
    for line in lines:
        for key in ("core", "portability", "generated", "memory", "tokens_per_second"):
            line.pop(key, None)
    page = Page(render(whole_run(config=config(name="full"), metrics=lines, answers=[], pairs=[])))
    assert page.marked("data-chart") == {"reliability", "reliability-token", "perplexity", "loss", "timeline"}
    assert page.marked("data-table") == {"rounds"}
    for absent in (
        "portability",
        "Portability",
        "generated",
        "core",
        "threshold",
        "Memory",
        "landed",
        "pairs",
    ):
        assert absent not in page.text
    assert "Still running: round 1 is the last one finished." in page.text


def test_a_run_without_a_round_still_gives_a_page() -> None:
    page = Page(render(RunData.from_texts({"name": "new"}, [], [], [])))
    assert "Still running: no round is finished yet." in page.text
    assert not page.marked("data-chart")
    assert "section" not in {tag for tag, _ in page.elements}


@pytest.mark.parametrize("broken", [math.nan, math.inf, None])
def test_a_figure_that_is_no_number_is_a_gap(broken: float | None) -> None:
    lines = [
        round_line(0),
        round_line(1, perplexity=broken, loss={"old": [broken, 1.0], "new": [broken]}),
        round_line(2),
    ]
    page = render(whole_run(metrics=lines))
    for chart in ("perplexity", "loss"):
        drawn = ET.tostring(drawing(page, chart), encoding="unicode")
        assert "nan" not in drawn
        assert "inf" not in drawn
    assert len(drawing(page, "perplexity").findall("g")) == 2
    assert NOTHING in Page(page).text


def test_shares_are_of_the_elements_they_name() -> None:
    page = render(whole_run())
    assert (
        "MLP 30.0 % of 300; attention 10.0 % of 100; other 10.0 % of 200"
        in drawing(page, "conflicts-by-kind").attrib["aria-label"]
    )
    layer, loose = (group.findtext("title") for group in drawing(page, "conflicts-by-layer").findall("g"))
    assert layer == "layer 0: 25.0 % (mlp 22.5 %, attention 2.5 %)"
    assert loose == "embedding: 10.0 % (other 10.0 %)"
    words = [one.text for one in drawing(page, "conflicts-by-layer").findall("text")]
    assert "dashed: all weights, 20.0 %" in words


def test_only_rounds_up_to_the_kept_one_count_for_where_the_update_landed() -> None:
    late = round_line(2)
    for part in late["core"]["by_layer"]:
        part["conflicts"] = part["elements"]
    page = render(whole_run(metrics=[round_line(0), round_line(1), late, END | {"best_round": 1}]))
    assert "MLP 30.0 % of 300" in drawing(page, "conflicts-by-kind").attrib["aria-label"]


def test_bars_stand_on_each_other_and_are_as_tall_as_their_share() -> None:
    page = render(whole_run())
    mlp, attention = [
        (float(box.attrib["y"]), float(box.attrib["height"]))
        for box in drawing(page, "conflicts-by-layer").findall("g")[0].iter("rect")
    ]
    assert mlp[1] == pytest.approx(9 * attention[1], rel=0.01)
    assert attention[0] + attention[1] == pytest.approx(mlp[0], abs=0.02)


def test_two_groups_train_side_by_side_and_the_rest_follows_the_slower() -> None:
    spans = {tip.split(":")[0]: (x, width) for tip, x, width in boxes(render(whole_run()), "timeline")}
    old, new, exchange = (spans[f"round 1, {phase}"] for phase in ("old", "new", "exchange"))
    assert old[0] == new[0]
    assert old[1] / new[1] == pytest.approx(4 / 5, rel=0.01)
    assert exchange[0] == pytest.approx(new[0] + new[1], abs=0.02)


def test_a_round_takes_what_the_slower_group_takes_and_both_begin_after_what_comes_before() -> None:
    line = round_line(1)
    line["seconds"] |= {"hold": 1.0, "draw": 60.0, "old": 20.0, "new": 22.0}
    assert wall(line) == 1 + 60 + 22 + 1 + 1 + 0.5 + 1 + 2  # exchange, select, apply, checkpoint, evaluate
    page = render(whole_run(metrics=[round_line(0), line]))
    spans = {tip.split(":")[0]: (x, width) for tip, x, width in boxes(page, "timeline")}
    draw, old, new, exchange = (spans[f"round 1, {phase}"] for phase in ("draw", "old", "new", "exchange"))
    assert old[0] == new[0] == pytest.approx(draw[0] + draw[1], abs=0.02)
    assert exchange[0] == pytest.approx(new[0] + new[1], abs=0.02)
    assert "1 min 28 s" in Page(page).text


def test_one_group_trains_in_sequence() -> None:
    lines = [round_line(0), round_line(1, memory={"rank-0": 2**30})]
    page = render(whole_run(metrics=lines))
    spans = {tip.split(":")[0]: (x, width) for tip, x, width in boxes(page, "timeline")}
    old, new, exchange = (spans[f"round 1, {phase}"] for phase in ("old", "new", "exchange"))
    assert new[0] == pytest.approx(old[0] + old[1], abs=0.02)
    assert exchange[0] == pytest.approx(new[0] + new[1], abs=0.02)


def test_the_loss_breaks_where_a_round_begins() -> None:
    paths = [one.attrib["d"] for one in drawing(render(whole_run()), "loss").findall("path[@class='line tone-new']")]
    assert [path.count("M") for path in paths] == [2]
    assert [path.count("L") for path in paths] == [4]


def test_a_long_loss_is_thinned_to_means_and_says_so() -> None:
    line = round_line(1, loss={"old": [1.0, 3.0] * 500, "new": [5.0] * 1000})
    page = render(whole_run(metrics=[round_line(0), line]))
    assert "every point is the mean of 3 steps" in page
    path = drawing(page, "loss").findall("path[@class='line tone-old']")[0].attrib["d"]
    assert path.count("L") + path.count("M") == math.ceil(1000 / 3)


def test_a_round_run_again_counts_once_and_a_continued_run_has_no_end() -> None:
    again = round_line(1, perplexity=99.0)
    run = RunData.from_texts(config(), [round_line(0), round_line(1), again], [], [])
    assert [line["perplexity"] for line in run.rounds] == [12.0, 99.0]
    assert RunData.from_texts(config(), [round_line(0), END, round_line(1)], [], []).end == {}


def test_the_rounds_table_has_a_row_per_round_and_the_protocols_that_applied() -> None:
    changed = round_line(2, protocol="teacher-forced, template=chat")
    page = Page(render(whole_run(metrics=[round_line(0), round_line(1), changed, END])))
    assert sum(1 for tag, attributes in page.elements if attributes.get("scope") == "row" and tag == "th") == 3
    assert "teacher-forced, template=plain (rounds 0 to 1)" in page.text
    assert "teacher-forced, template=chat (rounds 2 to 2)" in page.text
    assert "2 ★" in page.text


def test_the_footer_names_what_would_be_needed_to_run_it_again() -> None:
    words = Page(render(whole_run())).text
    for needed in ("torch 1.2.3", "aaaa", "bbbb", "tiny-base", '"seed": 7', END["stop_reason"]):
        assert str(needed) in words


@pytest.mark.parametrize(
    ("after", "contains", "expected"),
    [
        ("berlin.", False, RIGHT),
        ("Bonn", False, STALE),
        ("It is Berlin now", False, OTHER),
        ("It is Berlin now", True, RIGHT),
        ("Berliner", True, OTHER),
        ("", True, OTHER),
    ],
)
def test_the_verdict_folds_case_and_punctuation(after: str, contains: bool, expected: tuple[str, str]) -> None:
    assert verdict(answer(after), contains) == expected


def test_a_long_list_of_answers_is_cut_and_says_so() -> None:
    page = Page(render(whole_run(answers=[answer("Berlin")] * (SHOWN_ANSWERS + 5))))
    assert f"65 of the 65 sampled answers are the new ones now (the first {SHOWN_ANSWERS} of 65 are shown)" in page.text
    assert page.text.count("✓ the new") == SHOWN_ANSWERS


def test_the_swapped_span_is_marked() -> None:
    assert highlight("It is Bonn <b>", "bonn", "old") == 'It is <mark class="tone-old">Bonn</mark> &lt;b&gt;'
    assert highlight("a.c abc", "a.c", "old") == '<mark class="tone-old">a.c</mark> abc'
    assert highlight("no span", "", "new") == "no span"
    assert 'It is <mark class="tone-new">Berlin</mark> today.' in render(whole_run())


def test_the_report_imports_neither_torch_nor_ray() -> None:
    check = "import sys, dft_cluster.runs.report; print(sorted({'torch', 'ray'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
