"""The look at one's own cluster: all is well here, and what is not is told with what to do."""

from pathlib import Path

import pytest

from dft_cluster.cluster.selftest import main

pytestmark = pytest.mark.usefixtures("cluster")


def config(folder: Path, more: str = "") -> str:
    file = folder / "c.yaml"
    file.write_text(
        f"run: {{dir: {folder}/runs}}\ntrack: {{wandb: offline}}\ncluster: {{threads: 1, ranks_per_group: 2{more}}}\n"
    )
    return str(file)


def test_all_is_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([config(tmp_path)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("ok ")]
    named = [line[8:40].strip() for line in lines]
    assert named == [
        "cluster", "ranks", "storage", "ZeRO-1: groups' worlds", "ZeRO-1: against plain training", "all-reduce", "exchange",
        "ZeRO-2: groups' worlds", "ZeRO-2: against plain training", "ZeRO-3: groups' worlds",
        "ZeRO-3: against plain training", "W&B",
    ]  # fmt: skip
    assert list((tmp_path / "runs").iterdir()) == []


def test_what_fails_is_told_with_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "no key at all")
    file = config(tmp_path, ", groups: 1").replace("c.yaml", "c.yaml")
    assert main([file, "track.wandb=online", "cluster.ranks_per_group=1"]) == 1
    out = capsys.readouterr().out
    assert "not ok  W&B" in out and "→ a key by cluster.secrets" in out
    assert "no key at all" not in out


def test_too_large_for_the_cluster(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([config(tmp_path, ", gpus_per_rank: 1")]) == 2
    assert "the cluster holds 0 rank(s)" in capsys.readouterr().err
