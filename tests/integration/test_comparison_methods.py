"""One comparison of every method, from its runs to its tables."""

import json
from pathlib import Path

import pytest

from dft_cluster.comparison.tables import tables
from dft_cluster.config import ONE_ROUND
from tests import tiny
from tests.integration.comparisons import Json, cell, folder, run, small
from tests.integration.methods import METHODS

NAMES = ("dft", "full", "lora", "dft-lora", "ft_c", "f_learning", "rome", "memit", "interpolate")


@pytest.fixture
def tree(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Json:
    monkeypatch.setenv("DFT_CACHE", str(tmp_path / "cache"))
    tree = small(tiny_model, tmp_path)
    tree["base"]["evaluate"] = {"protocols": ["teacher_forced", "likelihood"]}
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"After {one} comes {other}." for one in tiny.OLD for other in tiny.NEW))
    tree["base"]["editing"] = {"covariance": str(text), "covariance_samples": 100}
    methods = {name: dict(METHODS[name]) for name in NAMES}
    for name, sections in methods.items():
        sections["method"] = {**sections["method"], "rounds": 1 if name in ONE_ROUND else 2}
    return {**tree, "methods": methods, "seeds": [0, 1], "report": {"facts": 6}, "levels": [1]}


def measured(tree: Json, name: str) -> list[Json]:
    return [json.loads(line) for line in (folder(tree) / "cells" / name / "metrics.jsonl").read_text().splitlines()]


def test_every_method_has_its_figures_its_likelihood_and_its_costs(tree: Json) -> None:
    found = run(tree)
    assert {one["status"] for one in found["cells"]} == {"finished"}
    by_name = {table.name: table for table in tables(found, "tiny")}
    for name in ("results-places", "likelihood", "seconds"):
        assert {row[0] for row in by_name[name].rows if "–" not in row[1:]} == set(NAMES), name
    for name in ("differences-token", "differences-exact", "differences-likelihood"):
        lines = {row[0]: list(row[1:]) for row in by_name[name].rows}
        assert set(lines.pop("dft")) == {"–"}
        assert all(line[0] == "2" and "–" not in line for line in lines.values()), name
    # F-Learning's first round only forgets: nothing is taught by then, and no level is passed there.
    taught = [point["taught"] for point in cell(found, "tiny.places.f_learning.0")["points"]]
    assert taught == [False, False, True]
    # What the first run measured and the second found in the cache is a cost of both.
    first, later = (measured(tree, f"tiny.places.rome.{seed}")[1] for seed in (0, 1))
    assert first["seconds"]["covariance"] > 0 and "elsewhere" not in first
    assert later["elsewhere"]["covariance"] > 0
    for line, seed in ((first, 0), (later, 1)):
        idle = ("evaluate", "checkpoint", "track")
        spent = sum(seconds for phase, seconds in line["seconds"].items() if phase not in idle)
        spent += sum(line.get("elsewhere", {}).values())
        assert cell(found, f"tiny.places.rome.{seed}")["costs"]["work_seconds"] == pytest.approx(spent)
