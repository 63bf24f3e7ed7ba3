"""The real model that comes out of its package, updated for real."""

from pathlib import Path

import pytest

from dft_cluster import update
from dft_cluster.config import ModelSettings
from dft_cluster.errors import InputError
from dft_cluster.models.source import resolve
from dft_cluster.patch import fingerprint, verify
from dft_cluster.patch.apply import apply


def test_two_facts_into_the_embedded_model(tmp_path: Path) -> None:
    try:
        base = resolve(ModelSettings())
    except InputError as error:
        pytest.skip(str(error))
    result = update(
        "smollm2-135m",
        "embedded",
        run_dir=tmp_path,
        facts={"limit": 2},
        method={"top": 0.1, "rounds": 2},
        train={"lr": 4e-4, "epochs": 3, "batch": 2},
        converge={"reliability": 90},
        evaluate={"protocols": ["teacher_forced"]},
    )
    start, *rounds, end = result.metrics
    assert [line["core"]["k"] for line in rounds] == [134515008 // 10] * len(rounds)
    assert all(line["core"]["kept"] == line["core"]["k"] for line in rounds)
    assert rounds[-1]["loss"]["new"][-1] < rounds[0]["loss"]["new"][0]
    assert end["final"]["reliability"]["token"] > start["reliability"]["token"]
    kinds = {place["kind"] for place in rounds[0]["core"]["by_layer"]}
    assert kinds == {"mlp", "attention", "norm", "embedding"}
    # The patch is for exactly the base that config.json names, and gives what was measured.
    assert verify(result.patch, base).state == "base"
    assert apply(result.patch, base, tmp_path / "updated") != fingerprint(base)
    assert verify(result.patch, tmp_path / "updated").state == "patched"
