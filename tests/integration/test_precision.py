"""What offloading, split batches and a CPU's bf16 mean for the bits of a run, and what is said of it."""

import re
from pathlib import Path
from typing import Any

import pytest

from dft_cluster.local import in_this_process
from dft_cluster.methods.prepare import prepare
from dft_cluster.ranks.rank import Rank, Source
from dft_cluster.runs.console import Console
from tests.integration import runs


@pytest.mark.parametrize(
    ("train", "clip"),
    [
        ({"gradient_checkpointing": True}, 1),
        ({"offload": "optimizer"}, 0),
        ({"offload": "optimizer", "zero_stage": 2}, 0),
    ],
)
def test_what_saves_memory_does_not_change_the_bits(
    tiny_model: Path, tiny_facts: Path, tmp_path: Path, train: dict[str, Any], clip: float
) -> None:
    """But for the norm that gradients are clipped by, which DeepSpeed sums up in another order where it offloads."""
    one = {"method": {"rounds": 1}}
    plain = runs.alone(runs.config(tiny_model, tiny_facts, tmp_path / "plain", **one, train={"clip": clip}))
    saving = runs.alone(runs.config(tiny_model, tiny_facts, tmp_path / "saving", **one, train={**train, "clip": clip}))
    assert runs.parts(saving, 1) == runs.parts(plain, 1)


def test_everything_offloaded_under_stage_3_and_split_batches_train_alike(
    tiny_model: Path, tiny_facts: Path, tmp_path: Path
) -> None:
    """Sums in another order: the same losses but for the last bits."""
    plain = runs.alone(runs.config(tiny_model, tiny_facts, tmp_path / "plain", method={"rounds": 1})).rounds[1]["loss"]
    ways: dict[str, dict[str, Any]] = {
        "optimizer": {"offload": "optimizer"}, "all": {"offload": "all", "zero_stage": 3}, "split": {"tokens_per_batch": 16},
    }  # fmt: skip
    for name, train in ways.items():
        other = runs.alone(
            runs.config(tiny_model, tiny_facts, tmp_path / name, method={"rounds": 1}, train=train)
        ).rounds[1]["loss"]
        for side in ("old", "new"):
            assert other[side] == pytest.approx(plain[side], rel=1e-4)


@pytest.mark.parametrize(
    "train",
    [
        {"gradient_checkpointing": True},
        {"offload": "optimizer"},
        {"offload": "all", "zero_stage": 3},
        {"zero_stage": 2},
    ],
)
def test_the_engine_saves_as_it_is_told(
    tiny_model: Path, tiny_facts: Path, tmp_path: Path, train: dict[str, Any]
) -> None:
    settings = runs.config(tiny_model, tiny_facts, tmp_path, train=train)
    with in_this_process(prepare(settings).seat(1), Source(settings.model), Console(runs.silent)) as team:
        [(deepspeed, module)] = team.everyone.call(lambda rank: (rank._engine._engine, rank._engine.module))
        assert deepspeed.zero_optimization_stage() == settings.train.zero_stage
        offloaded = [deepspeed.zero_offload_optimizer(), deepspeed.zero_offload_param()]
        wanted = {"optimizer": ["cpu", "none"], "all": ["cpu", "cpu"]}.get(train.get("offload", ""), ["none", "none"])
        assert [place.device if place else "none" for place in offloaded] == wanted
        assert module.is_gradient_checkpointing == ("gradient_checkpointing" in train)


@pytest.mark.parametrize(("able", "precision", "told"), [(False, "bf16", 1), (True, "bf16", 0), (False, "fp32", 0)])
def test_bf16_on_a_cpu_without_it_is_told(
    tiny_model: Path,
    tiny_facts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    able: bool,
    precision: str,
    told: int,
) -> None:
    monkeypatch.setattr(Rank, "multiplies_bf16", lambda _: able)
    settings = runs.config(tiny_model, tiny_facts, tmp_path, method={"rounds": 1}, train={"precision": precision})
    said: list[str] = []
    record = runs.alone(settings, said.append)
    for words in (said, record.identity["notes"]):
        assert sum("right would be train.precision=fp32" in line for line in words) == told


def test_whether_this_cpu_multiplies_bf16_is_what_the_system_says_of_it() -> None:
    told = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    if not re.search(r"^(flags|Features)\s*:", told, re.MULTILINE):
        pytest.skip("the system does not tell")
    assert Rank().multiplies_bf16() == bool(re.search(r"\b(avx512_bf16|amx_bf16|bf16)\b", told))
