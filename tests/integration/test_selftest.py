"""The look at one's own cluster: all is well here, and what is not is told with what to do."""

import signal
from pathlib import Path

import pytest

from dft_cluster.cluster.actors import ActorTeam
from dft_cluster.cluster.selftest import main
from dft_cluster.ranks.team import LostRankError
from tests.integration.harm import Harm

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


def test_a_rank_that_is_stuck_is_told_in_time_and_the_rest_of_the_table_as_well(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rank of the world that is built stands still: the library itself would wait for half an hour."""
    harm = Harm("build", "new-1", signal.SIGSTOP).install(monkeypatch)
    assert main([config(tmp_path, ", hang: 8")]) == 1
    assert harm.done
    out = capsys.readouterr().out
    assert "not ok  ZeRO-1: groups' worlds" in out and "8 s" in out and "→ NCCL_DEBUG" in out
    assert "ok      storage" in out and "ok      W&B" in out


def test_ranks_that_do_not_come_up_are_told_after_what_was_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(_team: ActorTeam) -> None:
        raise LostRankError("rank old-0 did not start within 60 s")

    monkeypatch.setattr(ActorTeam, "know", lost)
    assert main([config(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert out.index("ok      cluster") < out.index("not ok  ZeRO-1: ranks") < out.index("ok      W&B")


def test_too_large_for_the_cluster(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([config(tmp_path, ", gpus_per_rank: 1")]) == 2
    assert "the cluster holds 0 rank(s)" in capsys.readouterr().err
