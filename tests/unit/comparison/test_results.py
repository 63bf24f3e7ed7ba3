"""The results and their tables from cells that are made up, with figures that can be counted by hand."""

import csv
import io
import json
import re
from dataclasses import replace

from dft_cluster.comparison import results
from dft_cluster.comparison.loading import checked
from dft_cluster.comparison.page import render
from dft_cluster.comparison.results import Cell, Row, gather, of
from dft_cluster.comparison.split import Split
from dft_cluster.comparison.statistics import Point
from dft_cluster.comparison.tables import tables
from dft_cluster.comparison.writing import as_csv, markdown
from dft_cluster.facts.fact import Fact

SETTINGS = checked(
    {
        "models": {"m": {}},
        "data": {"one": {}, "two": {}},
        "methods": {"dft": {}, "full": {"method": {"name": "full"}}, "late": {"method": {"name": "full"}}},
        "seeds": [0, 1],
        "levels": [80, 99],
        "draws": 200,
    }
)
SPLITS = {name: Split([Fact("1", "p", "a", "b"), Fact("2", "q", "a", "b")], [], ["a note"]) for name in ("one", "two")}


def row(method, data, seed, value, **more):
    final = {
        "round": 2,
        **{metric: {"token": value, "exact": value - 10} for metric in ("reliability", "generality", "locality")},
        "likelihood": {"ES": value, "PS": value, "NS": value, "S": value},
        "protocol": "teacher-forced, plain",
    }
    cost = {
        "device_seconds": 2 * value, "work_seconds": value, "wall_seconds": 100.0, "memory": 2**30, "ranks": 2,
        "patch_bytes": 2**20, "changed_share": 0.05,
    }  # fmt: skip
    points = [Point(0, 0.0, 0.0, 0.0, 100.0, taught=False), Point(1, value, value, value, value)]
    outcomes = {m: [[0, value / 100, 0], [1, value / 100, 1]] for m in ("reliability", "generality", "locality")}
    by_round = {metric: {1: one} for metric, one in outcomes.items()}
    if method == "full":  # one round more, which takes from the others what it gives to reliability
        points.append(Point(2, 3 * value, value + 20, value - 20, value - 40))
        for metric, gain in (("reliability", 0.2), ("generality", -0.2), ("locality", -0.4)):
            by_round[metric][2] = [[fact, share + gain, right] for fact, share, right in outcomes[metric]]
    return Row(Cell("m", data, method, seed), "finished", "done", final, cost, points, outcomes, by_round)


def found():
    rows = [
        row(method, data, seed, value + 2 * seed)
        for seed in (0, 1)
        for data in ("one", "two")
        for method, value in (("dft", 90.0), ("full", 80.0))
    ]
    rows += [Row(Cell("m", data, "late", seed)) for data in ("one", "two") for seed in (0, 1)]
    rows[-1] = Row(Cell("m", "two", "late", 1), "failed", "<script>alert(1)</script>\nand | more")
    return gather(SETTINGS, SPLITS, rows, {})


def table(name):
    [one] = [one for one in tables(found(), "m") if one.name == name]
    return {line[0]: list(line[1:]) for line in one.rows}


def test_means_and_deviations_over_seeds():
    assert table("results-one")["dft"][:7] == ["2/2", *["91.0 ± 1.4"] * 3, *["81.0 ± 1.4"] * 3]
    assert table("results-two")["full"][:7] == ["2/2", *["81.0 ± 1.4"] * 3, *["71.0 ± 1.4"] * 3]
    assert table("results-one")["late"] == ["0/2", "not run yet", *["–"] * 11]
    assert table("results-two")["late"] == ["0/2", "failed", *["–"] * 11]
    assert table("likelihood")["dft"][:4] == ["91.0 ± 1.4"] * 4


def test_differences_to_the_reference():
    assert table("differences-token")["full"] == ["2", *["-10.0 [-10.0, -10.0]"] * 3] * 2
    assert table("differences-token")["dft"] == ["–"] * 8


def test_a_cell_that_finishes_has_its_own_differences_bootstrapped_alone(monkeypatch):
    asked, levels = [], results._levels

    def asking(settings, key, groups):
        asked.append(key)
        return levels(settings, key, groups)

    monkeypatch.setattr(results, "_levels", asking)
    rows = [row(method, "one", 0, value) for method, value in (("dft", 90.0), ("full", 80.0))]
    known = {}
    for more, anew in (([], 6), ([], 0), ([row("late", "one", 0, 70.0)], 1), ([row("dft", "one", 1, 90.0)], 3)):
        asked.clear()
        rows += more
        told = gather(SETTINGS, SPLITS, rows, {}, known)
        assert len(asked) == anew, more
        assert told == gather(SETTINGS, SPLITS, rows, {})


def test_differences_by_likelihood_and_runs_that_kept_none():
    def kept(method, seed, es, ps, ns):
        made = row(method, "one", seed, 90.0)
        won = {
            name: [[fact, *2 * [float(one)]] for fact, one in enumerate(all_of)]
            for name, all_of in (("ES", es), ("PS", ps), ("NS", ns))
        }
        return replace(made, outcomes={**made.outcomes, **won})

    # Each fact gains nothing in ES and all in PS; in NS fact 0 loses all and fact 1 gains all.
    rows = [
        kept("dft", 0, (1, 1), (0, 0), (1, 0)),
        kept("full", 0, (1, 1), (1, 1), (0, 1)),
        row("late", "one", 0, 80.0),
    ]
    [one] = [t for t in tables(gather(SETTINGS, SPLITS, rows, {}), "m") if t.name == "differences-likelihood"]
    lines = {line[0]: list(line[1:]) for line in one.rows}
    assert [name for _, name in one.columns] == ["seeds", "ES", "PS", "NS", "S"] * 2
    # S: 3 / (1/1 + 1/1 + 1/0.5) above nothing; nothing where fact 0 is drawn twice, 100 where fact 1 is.
    assert lines["full"][:5] == [
        "1", "+0.0 [+0.0, +0.0]", "+100.0 [+100.0, +100.0]", "+0.0 [-100.0, +100.0]", "+75.0 [+0.0, +100.0]",
    ]  # fmt: skip
    assert lines["dft"] == lines["late"] == ["–"] * 10, "the reference, and runs without outcomes by likelihood"
    assert "differences-likelihood" not in [table.name for table in tables(found(), "m")]


def test_costs_and_seconds():
    assert table("results-one")["dft"][7:] == ["182.0", "1 min 40 s", "2", "1.00 GiB", "1 MiB", "5 %"]
    assert table("seconds")["full"] == ["81.0 ± 1.4"] * 2


def test_equal_reliability():
    # dft: seeds end at 90 and 92 in their first round, which counts as it is.
    line = table("levels-one")["dft"]
    assert line[:4] == ["91.0 ± 1.4"] * 4
    assert line[4] == "not reached (top 92.0)"
    full = table("levels-one")["full"]
    # To 90 and 92, half-way through its second round, full takes 160 and 164 device-seconds, and dft 90 and 92.
    assert full[:4] == ["81.0 ± 1.4"] * 4
    assert table("levels-one")["late"] == ["–"] * 8
    differences = table("level-differences-one")
    assert differences["full"] == [
        "91.0", "-20.0 [-20.0, -20.0]", "-30.0 [-30.0, -30.0]", f"×{182 / 324:.2f}", *["–"] * 4,
    ]  # fmt: skip
    assert differences["dft"] == differences["late"] == ["–"] * 8


def test_equal_reliability_says_how_many_seeds_have_it():
    cells = (("dft", 0, 90.0), ("dft", 1, 92.0), ("full", 0, 80.0), ("full", 1, 60.0))
    rows = [row(method, "one", seed, value) for method, seed, value in cells]
    # In a draw of the first fact alone it would be beyond 92: that says nothing of a mean in which it has no part.
    rows[-1].by_round["reliability"][2] = [[0, 1.0, 1], [1, 0.6, 0]]
    [one] = [
        table for table in tables(gather(SETTINGS, SPLITS, rows, {}), "m") if table.name == "level-differences-one"
    ]
    lines = {line[0]: list(line[1:]) for line in one.rows}
    # In seed 1 plain fine-tuning ends at 80: below 92, which dft has after its first round.
    assert lines["full"][:2] == ["90.0 (1 of 2 seeds)", "-20.0 [-20.0, -20.0]"]


def test_runs_without_outcomes_or_of_one_fact_have_no_interval_at_equal_reliability():
    def differences(**kept):
        rows = [replace(row(method, "one", 0, 90.0), **kept) for method in ("dft", "full")]
        [one] = of(gather(SETTINGS, SPLITS, rows, {}), "levels", data="one", method="full", level=80)
        assert one["compared_at"] == 90.0
        return one["differences"]

    assert differences().keys() == {"generality", "locality"}
    assert differences(by_round={}) == {}
    assert (
        differences(by_round={name: {n: [[0, 0.9, 0]] for n in (1, 2)} for name in ("reliability", "locality")}) == {}
    )


def test_the_pareto_front_and_the_records():
    results = found()
    assert [(one["method"], one["data"]) for one in results["pareto"]] == [
        ("full", "one"), ("dft", "one"), ("full", "two"), ("dft", "two"),
    ]  # fmt: skip
    assert results["records"]["one"]["ids"] == ["1", "2"]
    assert results["records"]["one"]["left_out"] == ["a note"]
    assert json.loads(json.dumps(results)) == results


def test_csv_has_a_row_per_cell_with_its_protocol():
    rows = list(csv.DictReader(io.StringIO(as_csv(found()))))
    assert len(rows) == 12
    assert (rows[0]["method"], rows[0]["reliability.token"], rows[0]["protocols"]) == (
        "dft", "90.0", "teacher-forced, plain",
    )  # fmt: skip
    assert rows[-1]["reason"].startswith("<script>")


def test_markdown_has_whole_tables_the_protocol_and_what_is_missing():
    text = markdown(found())
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1, block
    assert "Protocol: teacher-forced, plain." in text
    assert "m.two.late.1" in text
    assert "3 of 12 runs" in text
    assert "2 facts of `embedded`" in text


def test_costs_of_other_means_are_told_apart():
    one, *others = (replace(row(method, "one", 0, 90.0), equipment="1 rank(s)") for method in ("dft", "full", "late"))
    assert "no measure of one another" not in markdown(gather(SETTINGS, SPLITS, [one, *others], {}))
    other = replace(one, cell=Cell("m", "two", "dft", 0), equipment="2 rank(s)")
    assert "no measure of one another" not in markdown(gather(SETTINGS, SPLITS, [one, *others, other], {}))
    others[0] = replace(others[0], equipment="8 rank(s), 1 GPU(s) each")
    told = "The costs on one are no measure of one another: dft.0, late.0: 1 rank(s); full.0: 8 rank(s), 1 GPU(s) each."
    results = gather(SETTINGS, SPLITS, [one, *others], {})
    assert told in markdown(results) and told in render(results)


def test_the_page_needs_nothing_but_itself_and_runs_nothing():
    page = render(found())
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert not re.search(r"""(?:src|href)=["'](?!data:)""", page)
    assert not re.search(r"https?://", page)
    assert page.count("<svg") == 4
    assert page == render(found())
    for data in ("one", "two"):
        [chart] = re.findall(rf'<svg [^>]*data-chart="cost-m-{data}".*?</svg>', page, re.DOTALL)
        [line] = re.findall(r'class="line tone-front" d="([^"]+)"', chart)
        assert len(re.findall(r"[ML]", line)) == len(of(found(), "pareto", model="m", data=data))
    for name in ("results-one", "results-two", "differences-exact", "seconds", "levels-two", "pareto-one"):
        assert f'data-table="{name}"' in page
