"""Ranks that are lost: new ones go on from the last finished round, and the end is the same to the bit."""

import os
import re
import signal
import time
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray.util.placement_group import placement_group_table

from dft_cluster.cluster.actors import RankProcess
from dft_cluster.cluster.launch import on_ray
from dft_cluster.errors import InputError
from dft_cluster.methods.job import RunFailedError
from dft_cluster.methods.prepare import prepare
from dft_cluster.methods.run import run
from dft_cluster.patch import inspect
from dft_cluster.runs.console import Console
from tests.integration import runs
from tests.integration.harm import Harm

pytestmark = pytest.mark.usefixtures("cluster")
PAIR = {"groups": 2, "ranks_per_group": 1, "threads": 1}


def settings(model: Path, facts: Path, folder: Path, name: str, **cluster: Any) -> Any:
    return runs.config(model, facts, folder, method={"rounds": 2}, cluster={**PAIR, **cluster}, run={"name": name})


@pytest.fixture(scope="module")
def unharmed(tiny_model: Path, tiny_facts: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The outcome of a run that lost nothing."""
    folder = tmp_path_factory.mktemp("unharmed")
    runs.on_cluster(settings(tiny_model, tiny_facts, folder, "whole"))
    return inspect(folder / "whole" / "patch.safetensors").result_fingerprint


@pytest.mark.parametrize(
    ("verb", "rank", "turn", "since"),
    [
        ("build", "old-0", 1, "the beginning"),
        ("fine_tune", "new-0", 2, "round 1"),
        ("survey", "new-0", 2, "round 1"),
        ("apply", "new-0", 1, "the beginning"),
        ("write_part", "new-0", 2, "round 1"),
        ("predict", "old-0", 3, "round 2"),
    ],
)
def test_a_killed_rank_in_any_phase(
    tiny_model: Path, tiny_facts: Path, tmp_path: Path, unharmed: str, monkeypatch: pytest.MonkeyPatch,
    verb: str, rank: str, turn: int, since: str,
) -> None:  # fmt: skip
    harm = Harm(verb, rank, turn=turn).install(monkeypatch)
    said: list[str] = []
    record = runs.on_cluster(settings(tiny_model, tiny_facts, tmp_path, "harmed"), said.append)
    assert harm.done
    [note] = [note for note in record.identity["notes"] if "new ranks" in note]
    assert "died" in note and note.endswith(f"went on from {since}")
    assert any("starting new ranks" in line for line in said)
    assert inspect(tmp_path / "harmed" / "patch.safetensors").result_fingerprint == unharmed
    assert [line["round"] for line in record.rounds] == [0, 1, 2]


def test_losses_within_larger_worlds_end_with_the_same_bits(
    tiny_model: Path, tiny_facts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two ranks in a group, their peers in a collective: one is killed in round 2, another one stopped when it is done again."""
    pairs: Any = {
        "method": {"rounds": 2},
        "train": {"zero_stage": 3, "precision": "bf16"},
        "cluster": {**PAIR, "ranks_per_group": 2, "hang": 8},
    }
    runs.on_cluster(runs.config(tiny_model, tiny_facts, tmp_path, **pairs, run={"name": "whole"}))
    killed = Harm("fine_tune", "new-1", turn=2).install(monkeypatch)
    stopped = Harm("fine_tune", "old-0", signal.SIGSTOP, turn=3).install(monkeypatch)
    record = runs.on_cluster(runs.config(tiny_model, tiny_facts, tmp_path, **pairs, run={"name": "harmed"}))
    assert killed.done
    assert stopped.done
    assert sum("new ranks went on from round 1" in note for note in record.identity["notes"]) == 2
    bits = [inspect(tmp_path / name / "patch.safetensors").result_fingerprint for name in ("whole", "harmed")]
    assert bits[0] == bits[1]


def test_a_stopped_rank_is_noticed_and_treated_as_dead(
    tiny_model: Path, tiny_facts: Path, tmp_path: Path, unharmed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    harm = Harm("fine_tune", "new-0", signal.SIGSTOP).install(monkeypatch)
    said: list[str] = []
    record = runs.on_cluster(settings(tiny_model, tiny_facts, tmp_path, "harmed", hang=8), said.append)
    assert harm.done
    assert any("did not answer for 8 s" in text for text in said)
    assert any("rank new-0 did not answer" in note for note in record.identity["notes"])
    assert inspect(tmp_path / "harmed" / "patch.safetensors").result_fingerprint == unharmed


@pytest.mark.parametrize("step", [1, 3])
def test_a_rank_that_answers_while_its_steps_stand_still_is_given_up(
    tiny_model: Path, tiny_facts: Path, tmp_path: Path, unharmed: str, step: int
) -> None:
    """Stuck in the middle of a step, for the first process that gets so far."""
    stuck = tmp_path / "stuck"

    class Sticking(RankProcess):
        def fine_tune(self, *words: Any, **more: Any) -> Any:
            taken = count(1)

            def stick(*_: Any) -> None:
                if next(taken) == step and not stuck.exists():
                    stuck.touch()
                    time.sleep(2.5 * 8)  # twice what is waited for a step, and some: the process is ended long before

            hook = self._engine.module.register_forward_pre_hook(stick)
            try:
                return super().fine_tune(*words, **more)
            finally:
                hook.remove()

    kind = ray.remote(concurrency_groups={"watch": 1})(Sticking)
    said: list[str] = []
    config = settings(tiny_model, tiny_facts, tmp_path, "harmed", hang=8)
    run(prepare(config), partial(on_ray, kind=kind), Console(said.append))
    assert stuck.exists()
    [told] = [text for text in said if "no step for 8 s" in text and "new ranks" in text]
    assert f" at {step - 1} of " in told
    assert inspect(tmp_path / "harmed" / "patch.safetensors").result_fingerprint == unharmed


def test_a_rank_that_is_stopped_while_it_comes_up_is_given_up_and_ended(
    tiny_model: Path, tiny_facts: Path, tmp_path: Path, unharmed: str
) -> None:
    """Nobody knows its number yet: Ray ends it with its place."""
    stopped = tmp_path / "stopped"

    class Stopping(RankProcess):
        def __init__(self) -> None:
            if not stopped.exists():
                stopped.write_text(str(os.getpid()))
                os.kill(os.getpid(), signal.SIGSTOP)
            super().__init__()

    kind = ray.remote(concurrency_groups={"watch": 1})(Stopping)
    config = settings(tiny_model, tiny_facts, tmp_path, "harmed", timeout=25)
    run(prepare(config), partial(on_ray, kind=kind), Console(runs.silent))
    notes = runs.read(config).identity["notes"]
    assert any(
        re.fullmatch(r"rank .+ did not start within 25 s .*; new ranks went on from the beginning", n) for n in notes
    )
    assert inspect(tmp_path / "harmed" / "patch.safetensors").result_fingerprint == unharmed
    until = time.monotonic() + 30
    while psutil.pid_exists(int(stopped.read_text())) and time.monotonic() < until:
        time.sleep(0.2)
    assert not psutil.pid_exists(int(stopped.read_text()))


def test_a_run_that_cannot_be_saved_names_each_failure(
    tiny_model: Path, tiny_facts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Again(Harm):
        def _strike(self) -> None:
            super()._strike()
            self.done, self.turn = [], 1

    Again("fine_tune", "old-0").install(monkeypatch)
    with pytest.raises(RunFailedError, match=r"2 failures in a row.*max_failures=1\): 1\. .*old-0.*; 2\. .*old-0"):
        runs.on_cluster(settings(tiny_model, tiny_facts, tmp_path, "harmed", max_failures=1))


def test_a_cluster_that_is_too_small_is_told_at_once(tiny_model: Path, tiny_facts: Path, tmp_path: Path) -> None:
    config = settings(tiny_model, tiny_facts, tmp_path, "large", gpus_per_rank=1)
    with pytest.raises(InputError, match=r"asked for, and the cluster holds 0 rank\(s\): 1 node\(s\) with 4 CPU 0 GPU"):
        runs.on_cluster(config)
    assert not (tmp_path / "large").exists()


def test_waiting_for_room_is_said_and_ends(tiny_model: Path, tiny_facts: Path, tmp_path: Path) -> None:
    said: list[str] = []
    config = settings(tiny_model, tiny_facts, tmp_path, "large", gpus_per_rank=1, wait=3)
    with pytest.raises(InputError, match="the cluster holds 0"):
        runs.on_cluster(config, said.append)
    assert any("waiting for room" in line and "s left (cluster.wait)" in line for line in said)


def test_room_that_is_waited_for_is_told_to_an_autoscaler_and_no_longer(
    tiny_model: Path, tiny_facts: Path, tmp_path: Path
) -> None:
    asked: list[list[dict[str, float]]] = []

    def say(_line: str) -> None:
        pending = [one for one in placement_group_table().values() if one["state"] == "PENDING"]
        asked.append([bundle for one in pending for bundle in one["bundles"].values()])

    config = settings(tiny_model, tiny_facts, tmp_path, "large", gpus_per_rank=1, wait=7)
    with pytest.raises(InputError, match="the cluster holds 0"):
        runs.on_cluster(config, say)
    say("after it")
    world = config.cluster.groups * config.cluster.ranks_per_group
    assert asked[-2:-1] == [[{"CPU": 1.0, "GPU": 1.0}] * world]
    assert asked[-1] == []
