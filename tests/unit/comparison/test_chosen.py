"""The cells behind the tables have the settings that the rule of choice takes from the trials kept beside them."""

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest

from dft_cluster.comparison.loading import load
from dft_cluster.comparison.settings import dotted, laid, sections
from dft_cluster.comparison.statistics import harmonic
from dft_cluster.config_file import parse, validate

ROOT = Path(__file__).parents[3]
BENCHMARKS = ROOT / "benchmarks"
WHOLE = load(ROOT / "jobs" / "configs" / "compare_smollm2_table1.yaml")
ONE_ROUND = ("rome", "memit")
BOUNDED = {"dft_within", "interpolate_within"}  # which came after the tables
WITHIN = {"dft": ["dft", "dft_within", "bound", "bound_agreeing"], "interpolate": ["interpolate", "interpolate_within"]}
"""With texts before the prompt these were searched in parts, of which the last were within a bound."""


def trials(data: str) -> Iterator[dict[str, str]]:
    with (BENCHMARKS / "smollm2_trials.csv").open(newline="") as rows:
        yield from (row for row in csv.DictReader(rows) if row["data"] == data and not row["failed"])


def rank(row: dict[str, str]) -> tuple[bool, float]:
    reliability, *balance = (float(row[score]) for score in ("reliability", "generality", "locality"))
    return (True, harmonic(balance)) if reliability >= 95 else (False, reliability)


def assert_taken(table: str, data: str, method: str, best: dict[str, str]) -> None:
    tree = sections(load(BENCHMARKS / table), "smollm2", data, method)
    chosen = {key: parse(value) for key, value in (item.split("=") for item in best["setting"].split("; "))}
    if validate(tree).method.name not in ONE_ROUND:
        chosen["method.rounds"] = int(best["round"])
    assert validate(laid(tree, dotted(chosen))) == validate(tree)


@pytest.mark.parametrize("data", ["zsre", "counterfact"])
@pytest.mark.parametrize("method", [method for method in WHOLE.search.over if method not in BOUNDED])
def test_the_tables_cells_have_the_chosen_setting(data, method):
    """Of a setting that was tried twice the later trial counts: the first was lost, or was on another device than the rest."""
    own = [row for row in trials(data) if row["method"] == method]
    of_the_table = [row for row in own if (row["device"] != "CPU, bf16") != (method == "rome")]
    last = {row["setting"]: row for row in of_the_table}
    names = {item.partition("=")[0] for each in last for item in each.split("; ")}
    assert (len(last), names) == (WHOLE.search.trials, WHOLE.search.over[method].keys())
    assert_taken(f"smollm2_table1_{data}.yaml", data, method, max(last.values(), key=rank))


@pytest.mark.parametrize("data", ["zsre", "counterfact"])
def test_its_controls_have_the_setting_of_dft(data):
    methods = load(BENCHMARKS / f"smollm2_table1_{data}.yaml").methods
    assert methods.keys() - {"full_long"} == WHOLE.methods.keys() - BOUNDED
    for control in ("dft_new", "dft_same", "dft_random"):
        assert [methods[control][part] for part in ("method", "train")] == [
            methods["dft"][part] for part in ("method", "train")
        ]


@pytest.mark.parametrize("method", ["dft", "ft_c", "interpolate", "full"])
def test_so_have_those_with_texts_before_the_prompt(method):
    searched = [r for r in trials("counterfact") if r["method"] in WITHIN.get(method, [method])]
    with_texts = [row for row in searched if "train.contexts" in row["setting"]]
    assert len(with_texts) >= 4
    assert_taken("smollm2_table1_contexts.yaml", "counterfact", method, max(with_texts, key=rank))


@pytest.mark.parametrize("table", ["smollm2_table1_counterfact.yaml", "smollm2_table1_contexts.yaml"])
def test_what_goes_on_longer_does_nothing_else(table):
    methods = load(BENCHMARKS / table).methods
    assert laid(methods["full_long"], {"method": {"rounds": methods["full"]["method"]["rounds"]}}) == methods["full"]
