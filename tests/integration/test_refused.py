"""Rounds that are refused: nothing is written of them, and what was learnt before them is kept."""

import json
import math
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

import pytest

from dft_cluster.methods.job import RoundRefusedError
from dft_cluster.patch import inspect
from dft_cluster.ranks.rank import Rank
from tests.integration import runs


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("groups", [1, 2])
def test_a_nan_delta_stops_the_run_with_the_parameter_and_the_round(
    tiny_model: Path, tiny_facts: Path, tmp_path: Path, groups: int
) -> None:
    # One step a fine-tune, and a rate that is infinite in fp32: every loss is finite, the deltas are not.
    train = {"lr": 1e39, "clip": 0, "batch": 8, "epochs": 1}
    settings = runs.config(tiny_model, tiny_facts, tmp_path, train=train, cluster={"groups": groups})
    with pytest.raises(RoundRefusedError, match=r"round 1: .*NaN or infinity in model\..*weight.*θ is as it was"):
        runs.on_cluster(settings)
    assert [line["round"] for line in runs.read(settings).rounds] == [0]
    assert not runs.read(settings).checkpoints.finished()


@pytest.mark.parametrize("method", ["dft", "full"])
def test_a_loss_that_is_no_number_stops_the_run(
    tiny_model: Path, tiny_facts: Path, tmp_path: Path, method: str
) -> None:
    """DeepSpeed skips steps whose gradients overflow; a run that learned nothing must not look like one that did."""
    settings = runs.config(tiny_model, tiny_facts, tmp_path, method={"name": method}, train={"lr": 3e38, "clip": 0})
    with pytest.raises(RoundRefusedError, match=r"the loss of the (old|new) answers is (nan|inf) in step \d+"):
        runs.alone(settings)
    for line in (tmp_path / "dft" / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)


@pytest.mark.parametrize("method", ["full", "interpolate", "lora"])
def test_weights_that_are_no_numbers_are_no_round_of_any_method(
    tiny_model: Path, tiny_facts: Path, tmp_path: Path, method: str
) -> None:
    """One step a fine-tune: its loss is finite, and nobody sees what it did."""
    train = {"lr": 1e39, "clip": 0, "batch": 8, "epochs": 1}
    chosen = {"name": method, "rounds": 1}
    settings = runs.config(tiny_model, tiny_facts, tmp_path, train=train, method=chosen)
    with pytest.raises(RoundRefusedError, match=r"round 1: NaN or infinity in model\..*weight"):
        runs.alone(settings)
    assert not runs.read(settings).checkpoints.finished() and not (tmp_path / "dft" / "patch.safetensors").exists()


def test_nor_are_they_a_warmed_model(tiny_model: Path, tiny_facts: Path, tmp_path: Path) -> None:
    train = {"lr": 1e39, "clip": 0, "batch": 8}
    settings = runs.config(tiny_model, tiny_facts, tmp_path, train=train, warmup={"epochs": 1})
    with pytest.raises(RoundRefusedError, match=r"the warm-up: NaN or infinity in model\..*weight"):
        runs.alone(settings)
    assert not (tmp_path / "dft" / "base").exists() and not (tmp_path / "dft" / "base.json").exists()


@pytest.mark.parametrize("method", ["dft", "full"])
def test_a_refused_round_ends_the_run_with_what_was_learnt_before_it(
    tiny_model: Path, tiny_facts: Path, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights are trained further by then; the patch has those of the round before."""
    tune = Rank.fine_tune

    @wraps(tune)
    def lost(rank: Rank, examples: Any, pad: int, number: int, side: str, *rest: Any) -> Any:
        found = tune(rank, examples, pad, number, side, *rest)
        return replace(found, losses=[math.nan] * len(found.losses)) if (number, side) == (2, "new") else found

    one = runs.alone(
        runs.config(tiny_model, tiny_facts, tmp_path, method={"name": method, "rounds": 1}, run={"name": "one"})
    )
    monkeypatch.setattr(Rank, "fine_tune", lost)
    two = runs.alone(runs.config(tiny_model, tiny_facts, tmp_path, method={"name": method, "rounds": 3}))
    assert one.result is not None and two.result is not None
    assert two.result["stop_reason"].startswith("round 2: the loss of the new answers is nan in step 1")
    assert (two.result["rounds"], two.result["best_round"]) == (1, 1)
    assert two.result["final"] == one.result["final"]
    said = [inspect(tmp_path / name / "patch.safetensors").result_fingerprint for name in ("one", "dft")]
    assert said[0] == said[1]
