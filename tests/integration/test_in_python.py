"""`update()` and its like: several runs in one process, without a cluster."""

from pathlib import Path
from typing import Any

import pytest

from dft_cluster.errors import InputError
from tests.integration import runs


def test_after_the_run_the_rank_can_serve_another(tiny_model: Path, tiny_facts: Path, tmp_path: Path) -> None:
    """Two updates in one process give what one gives: nothing of the first world is left over."""
    first = runs.alone(runs.config(tiny_model, tiny_facts, tmp_path / "a", train={"zero_stage": 3}))
    second = runs.alone(runs.config(tiny_model, tiny_facts, tmp_path / "b", train={"zero_stage": 3}))
    assert runs.parts(first, 3) == runs.parts(second, 3)


def test_update_in_five_lines(tiny_model: Path, tmp_path: Path) -> None:
    """Facts made in Python, one call, the same bits as the job's own rounds; the environment is as it was."""
    import os

    from dft_cluster import update
    from dft_cluster.facts.readers import read
    from tests import tiny

    facts = read(str(tiny.facts_file(tmp_path))).facts
    sections: dict[str, Any] = {
        "method": {"top": 0.2, "rounds": 2},
        "train": {"lr": 2e-3, "precision": "fp32", "epochs": 2, "batch": 3},
        "converge": {"reliability": "off", "patience": "off"},
        "track": {"wandb": "off"},
    }
    before = dict(os.environ)
    result = update(tiny_model, facts, run_dir=tmp_path / "runs", **sections)
    assert dict(os.environ) == before
    assert [line.get("round") for line in result.metrics] == [0, 1, 2, None]
    settings = runs.config(tiny_model, tiny.facts_file(tmp_path), tmp_path / "job", method={"rounds": 2})
    record = runs.alone(settings)
    assert (result.folder / "checkpoints/round-0002/rank-00000.safetensors").read_bytes() == runs.parts(record, 2)[0]


@pytest.mark.parametrize(
    ("sections", "said"),
    [({"method": "full"}, "method must be a mapping"), ({"train": None}, "train must be a mapping"),
     ({"run": {"dir": "s3://bucket/runs"}}, "is no folder here")],
)  # fmt: skip
def test_update_tells_what_it_cannot_read(tiny_model: Path, tiny_facts: Path, sections: Any, said: str) -> None:
    from dft_cluster import update

    with pytest.raises(InputError, match=said):
        update(tiny_model, tiny_facts, **sections)


def test_update_s_folder_may_stand_in_its_section(
    tiny_model: Path, tiny_facts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dft_cluster import update

    monkeypatch.setenv("HOME", str(tmp_path))
    quick: Any = {"method": {"rounds": 1}, "train": {"epochs": 1, "precision": "fp32"}, "track": {"wandb": "off"}}
    assert update(tiny_model, tiny_facts, run={"dir": "~/runs"}, **quick).folder == tmp_path / "runs" / "dft"
