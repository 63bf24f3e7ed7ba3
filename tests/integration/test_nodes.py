"""A cluster of several nodes: placement, a node that is gone for good, a cable that is out for a while."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from dft_cluster.config import Config
from dft_cluster.patch import inspect
from tests.integration import nets, runs

pytestmark = pytest.mark.skipif(not nets.possible(), reason="needs root and network namespaces")
ROOT = Path(__file__).resolve().parents[2]


class Job:
    """A run in a process on the head, and what it says."""

    def __init__(self, nodes: nets.Nodes, config: Path, *overrides: str) -> None:
        self._log = config.with_suffix(".log")
        words = (sys.executable, str(ROOT / "jobs" / "update.py"), str(config), *overrides)
        self.process = nodes.driver(*words, log=self._log.open("wb"))

    def said(self) -> str:
        return self._log.read_text()

    def wait_for(self, words: str) -> None:
        until = time.monotonic() + 150
        while words not in self.said():
            if self.process.poll() is not None or time.monotonic() > until:
                pytest.fail(f"{words!r} never came:\n{self.said()}")
            time.sleep(0.1)

    def end(self) -> int:
        try:
            return self.process.wait(timeout=200)
        except subprocess.TimeoutExpired:
            pytest.fail(f"never ended:\n{self.said()}")


def settings(model: Path, facts: Path, folder: Path, **cluster: Any) -> Config:
    return runs.config(
        model, facts, folder / "runs", method={"rounds": 3}, train={"epochs": 40},
        cluster={"groups": 2, "ranks_per_group": 1, "threads": 1, **cluster},
    )  # fmt: skip


def job(model: Path, facts: Path, folder: Path, **cluster: Any) -> Path:
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump(settings(model, facts, folder, **cluster).to_json()))
    return file


def outcome(folder: Path) -> tuple[str, list[str]]:
    told = json.loads((folder / "runs" / "dft" / "config.json").read_text())
    return inspect(folder / "runs" / "dft" / "patch.safetensors").result_fingerprint, told["notes"]


def test_nodes_lost_and_cut_off(tiny_model: Path, tiny_facts: Path, tmp_path: Path) -> None:
    """One after the other on one cluster, for its start is the dear part; with as many ranks as before the bits are the same."""
    folders = {name: tmp_path / name for name in ("cut", "long", "gone", "apart", "fewer")}
    for folder in folders.values():
        folder.mkdir()
    runs.alone(settings(tiny_model, tiny_facts, tmp_path / "whole", groups=1))
    right, _ = outcome(tmp_path / "whole")
    with nets.Nodes() as nodes:
        first, second = nodes.add(1), nodes.add(1)

        # A cable that is out for some seconds: nothing is lost.
        cut = Job(nodes, job(tiny_model, tiny_facts, folders["cut"]))
        cut.wait_for("round 2 …")
        nodes.cut(second)
        time.sleep(3)
        nodes.heal(second)
        assert cut.end() == 0, cut.said()
        bits, notes = outcome(folders["cut"])
        assert bits == right
        assert not any("new ranks" in note for note in notes)

        # One that is out for longer than `cluster.hang`: the rank behind it counts as lost; a new one comes when it is back.
        long = Job(nodes, job(tiny_model, tiny_facts, folders["long"], wait=150, hang=6))
        long.wait_for("round 2 …")
        nodes.cut(second)
        long.wait_for("did not answer for 6 s")
        nodes.heal(second)
        assert long.end() == 0, long.said()
        bits, notes = outcome(folders["long"])
        assert bits == right
        assert any("new ranks went on from round 1" in note for note in notes)

        # A node that is gone: the run waits for another one, and goes on there.
        gone = Job(nodes, job(tiny_model, tiny_facts, folders["gone"], wait=150, hang=20))
        gone.wait_for("round 2 …")
        nodes.lose(first)
        gone.wait_for("waiting for room")
        nodes.add(1)
        assert gone.end() == 0, gone.said()
        bits, notes = outcome(folders["gone"])
        assert bits == right
        assert any("new ranks went on from round 1" in note for note in notes)

        # A node that sees another folder under the run's name: nothing is begun.
        blind = nodes.add(1, without=folders["apart"])
        apart = Job(nodes, job(tiny_model, tiny_facts, folders["apart"], groups=1, ranks_per_group=3))
        assert apart.end() != 0
        assert "is not the same folder for rank(s) [" in apart.said()
        assert not list((folders["apart"] / "runs").rglob("round-*"))
        nodes.lose(blind)

        # With leave to go on with fewer ranks: what is left of the cluster holds two of three.
        third = nodes.add(1)
        alone = {"groups": 1, "ranks_per_group": 3, "shrink": True, "hang": 20}
        fewer = Job(nodes, job(tiny_model, tiny_facts, folders["fewer"], **alone))
        fewer.wait_for("round 2 …")
        nodes.lose(third)
        assert fewer.end() == 0, fewer.said()
        _, notes = outcome(folders["fewer"])
        assert any("holds 2 rank(s)" in note and "went on with 2 in each (cluster.shrink)" in note for note in notes)
        lines = (folders["fewer"] / "runs" / "dft" / "metrics.jsonl").read_text().splitlines()
        assert any("no node holds a group of 3 ranks" in note and "spread over several" in note for note in notes)
        ranks = {line["round"]: len(line["memory"]) for line in map(json.loads, lines) if line.get("round")}
        assert ranks == {1: 3, 2: 2, 3: 2}
        assert "(cluster.shrink)" in (folders["fewer"] / "runs" / "dft" / "report.html").read_text()
