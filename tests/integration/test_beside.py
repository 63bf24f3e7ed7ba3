"""A comparison made by several processes beside each other is the one that a single driver makes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import yaml

from dft_cluster.runs.alone import alone
from dft_cluster.runs.storage import Storage
from tests.integration import comparisons
from tests.integration.comparisons import Launches
from tests.integration.runs import silent


def test_runs_beside_each_other_leave_nothing_to_do(tiny_model: Path, tmp_path: Path) -> None:
    tree = comparisons.small(tiny_model, tmp_path)
    tree["base"]["warmup"] = {"epochs": 1}
    del tree["base"]["converge"]
    tree["search"] = {"facts": 4, "trials": 2, "rungs": 1, "over": {"full": {"train.lr": [1e-3, 2e-3]}}}
    file = tmp_path / "comparison.yaml"
    file.write_text(yaml.safe_dump(tree), encoding="utf-8")

    command = [sys.executable, "-m", "benchmarks.beside", str(file), "--at-once", "2"]

    def beside(*more: str) -> list[str]:
        done = subprocess.run([*command, *more], capture_output=True, text=True, check=True)
        told = [line.split("] ", 1)[1] for line in done.stdout.splitlines() if line.startswith("[ ")]
        return [text for text in told if text.startswith(("warm (", "search (", "cell ("))]

    room = tmp_path / "runs" / "both"
    room.mkdir(parents=True)
    with alone(Storage(str(room)), silent):
        refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert f"process {os.getpid()} of" in refused.stderr
    [warm, cell] = beside("--only", "dft")
    assert warm.startswith("warm ('tiny', 'places', 0)")
    assert cell.startswith("cell ('tiny', 'places', 'dft', 0)")
    _, search = beside("--searches")
    assert search.startswith("search ('tiny', 'places', 'full')")
    assert beside("--searches") == []
    *_, last = beside("--tables")
    assert last.startswith("cell ('tiny', 'places', 'full', 0)")
    assert (room / "comparison.md").exists()
    launches = Launches()
    found = comparisons.run(tree, launches)
    assert launches.runs == []
    assert [row["status"] for row in found["cells"]] == ["finished", "finished"]


def test_what_fails_is_told_in_the_tables_and_stops_nothing_else(tiny_model: Path, tmp_path: Path) -> None:
    tree = comparisons.small(tiny_model, tmp_path)
    tree["base"]["warmup"] = {"epochs": 1}
    tree["models"]["gone"] = {"model": {"name": str(tmp_path / "nowhere")}}
    tree["methods"]["high"] = {"method": {"name": "ft_c", "layers": [99]}}
    file = tmp_path / "comparison.yaml"
    file.write_text(yaml.safe_dump(tree), encoding="utf-8")
    command = [sys.executable, "-m", "benchmarks.beside", str(file), "--at-once", "2", "--tables"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    found = json.loads((tmp_path / "runs" / "both" / "comparison.json").read_text(encoding="utf-8"))
    status = {row["name"]: (row["status"], row["reason"]) for row in found["cells"]}
    assert status["tiny.places.dft.0"][0] == status["tiny.places.full.0"][0] == "finished"
    for name, reason in {"tiny.places.high.0": "layers", "gone.places.dft.0": "nowhere"}.items():
        assert status[name][0] == "failed"
        assert reason in status[name][1]
