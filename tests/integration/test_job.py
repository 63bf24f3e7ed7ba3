"""The command itself, in processes of its own: --check, exit codes, kills, submitted to a cluster."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import yaml

from dft_cluster.methods.job import RunFailedError
from dft_cluster.models.structure import parameters
from dft_cluster.patch import Patch, inspect
from tests.integration import runs
from tests.integration.test_lock import until_noticed
from tests.wandb_files import records, rows

ROOT = Path(__file__).resolve().parents[2]
UPDATE = [sys.executable, str(ROOT / "jobs" / "update.py")]
FILED = "f1led-s3cr3t-fedcba9876543210fedcba9876543210fedc"
SECRET = "w4ndb-s3cr3t-0123456789abcdef0123456789abcd"


@pytest.fixture
def config(tiny_model: Path, tiny_facts: Path, tmp_path: Path) -> Path:
    settings = runs.config(
        tiny_model, tiny_facts, tmp_path / "runs", cluster={"address": "local"}, track={"wandb": "offline"}
    )
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(settings.to_json()))
    return file


def own_environment() -> dict[str, str]:
    """Without the W&B service that this process may have started: a job starts its own."""
    return {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}


def update(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [*UPDATE, *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=240, env={**own_environment(), **environment}, check=False
    )


@contextmanager
def running(*arguments: str, command: Sequence[str] = UPDATE) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=own_environment()
    )
    try:
        yield process
    finally:
        end(process)


def end(process: subprocess.Popen[str]) -> None:
    """Ends what a test started, with everything below it, by pid."""
    family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.kill()
    process.wait(timeout=30)
    for one in family:
        if one.is_running():
            one.kill()


def wait_for(process: subprocess.Popen[str], words: str) -> list[str]:
    assert process.stdout is not None
    seen: list[str] = []
    for line in process.stdout:
        seen.append(line)
        if words in line:
            return seen
    pytest.fail(f"{words!r} never came; this did:\n{''.join(seen)}")


def test_check_prints_the_resolved_config_and_starts_nothing(config: Path, tiny_model: Path, tmp_path: Path) -> None:
    done = update(str(config), "--check", "method.top=0.25")
    assert done.returncode == 0, done.stderr
    resolved = json.loads("\n".join(line for line in done.stdout.splitlines() if not line.startswith("#")))
    assert resolved["method"]["top"] == "0.25"
    assert f"8 facts, {sum(p.numel for p in parameters(tiny_model))} elements" in done.stdout
    assert not (tmp_path / "runs").exists()


def test_every_problem_is_told_at_once_with_exit_code_2_and_nothing_written(config: Path, tmp_path: Path) -> None:
    done = update(str(config), "method.top=1.5", "train.lrr=3", "cluster.groups=3", "run.name=../x")
    assert done.returncode == 2
    for words in ("method.top", "train.lrr: unknown key (did you mean train.lr?)", "cluster.groups", "run.name"):
        assert words in done.stderr
    missing = update(str(config), "facts.path=/nowhere/facts.jsonl", "model.name=/nowhere/model")
    assert missing.returncode == 2
    assert "/nowhere/facts.jsonl" in missing.stderr
    assert "/nowhere/model" in missing.stderr
    assert update(str(config), "cluster.gpus_per_rank=1").returncode == 2
    relative = update(str(config), "run.dir=runs", RAY_JOB_CONFIG_JSON_ENV_VAR="{}")
    assert relative.returncode == 2
    assert "run.dir" in relative.stderr
    assert not (tmp_path / "runs").exists()


def test_an_address_that_is_none_is_told(config: Path) -> None:
    done = update(str(config), "cluster.address=head-node")
    assert done.returncode == 2, done.stderr
    assert "cluster.address: no Ray cluster at head-node" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_killed_job_goes_on_to_the_same_bits_and_leaves_no_secret(config: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"WANDB_API_KEY={FILED}\n")
    keys.chmod(0o600)
    planted = [str(config), "run.dir=" + str(tmp_path / "whole"), f"cluster.secrets={keys}"]
    whole = update(*planted, WANDB_API_KEY=SECRET, HF_TOKEN=SECRET)
    assert whole.returncode == 0, whole.stdout + whole.stderr
    with running(str(config)) as process:
        wait_for(process, "round 3")
        process.send_signal(signal.SIGKILL)
    with running(str(config)) as process:
        wait_for(process, "resuming after round")
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "run the same command again" in rest
    again = update(str(config))
    assert again.returncode == 0, again.stdout + again.stderr
    folders = [tmp_path / "whole" / "dft", tmp_path / "runs" / "dft"]
    results = []
    for folder in folders:
        with Patch.opened(folder / "patch.safetensors") as patch:
            results.append((patch.base_fingerprint, patch.result_fingerprint))
    assert results[0] == results[1]
    finished = update(str(config))
    assert finished.returncode == 0
    assert "is finished" in finished.stdout
    segments = list((folders[1] / "wandb").glob("offline-run-*"))
    assert len(segments) > 1
    assert len({segment.name.rpartition("-")[2] for segment in segments}) == 1, "one W&B run in several segments"
    for file in folders[0].rglob("*"):
        for secret in (SECRET, FILED):
            assert not file.is_file() or secret.encode() not in file.read_bytes(), file
    assert SECRET not in whole.stdout + whole.stderr
    assert FILED not in whole.stdout + whole.stderr


def test_the_offline_wandb_run_reads_back(tiny_model: Path, tiny_facts: Path, tmp_path: Path) -> None:
    settings = runs.config(tiny_model, tiny_facts, tmp_path, track={"wandb": "offline", "tags": ("tried",)})
    record = runs.alone(settings)
    history, artifacts, run = read_wandb(tmp_path / "dft")
    rounds = [row for row in history if "reliability/token" in row]
    assert [row["round"] for row in rounds] == [0, 1, 2, 3]
    for row, line in zip(rounds, record.rounds, strict=True):
        assert row["reliability/token"] == pytest.approx(line["reliability"]["token"])
        assert row["locality/exact"] == pytest.approx(line["locality"]["exact"])
    losses = [row["loss/new"] for row in history if "loss/new" in row]
    assert losses == pytest.approx([loss for line in record.rounds[1:] for loss in line["loss"]["new"]])
    assert {"tokens_per_second/old", "memory/rank-0", "core/kept_share"} <= set(rounds[1])
    assert rounds[1]["core/by_layer/_type"] == "table-file"
    assert {kind for kind, _ in artifacts} >= {"patch", "report"}
    assert run.run_id == record.identity["wandb_id"]
    assert list(run.tags) == ["tried"]


def read_wandb(folder: Path) -> tuple[list[dict[str, Any]], list[tuple[str, str]], Any]:
    """Rows of history, artifacts and the run of an offline W&B run."""
    found = list(records(folder))
    artifacts: list[tuple[str, str]] = []
    for record in found:
        if record.HasField("artifact"):
            artifacts.append((record.artifact.type, record.artifact.name))
        elif record.HasField("request") and record.request.HasField("log_artifact"):
            artifact = record.request.log_artifact.artifact
            artifacts.append((artifact.type, artifact.name))
    run = [record.run for record in found if record.HasField("run")][-1]
    return rows(found), artifacts, run


def test_a_full_disk_ends_the_run_with_what_to_do_and_the_round_before_whole(config: Path, small_disk: Path) -> None:
    same = (str(config), "method.top=0.5", "track.wandb=off")
    done = update(*same, f"run.dir={small_disk}")
    assert done.returncode == 1
    assert "No space left" in done.stdout
    assert "run the same command again" in done.stdout.splitlines()[-1]
    assert (small_disk / "dft" / "checkpoints" / "round-0001" / "manifest.json").exists()
    subprocess.run(["mount", "-o", "remount,size=10m", str(small_disk)], check=True)
    again = update(*same, f"run.dir={small_disk}")
    assert "resuming after round 1" in again.stdout
    assert again.returncode == update(*same).returncode == 0
    whole = config.parent / "runs" / "dft" / "patch.safetensors"
    assert inspect(small_disk / "dft" / "patch.safetensors").result_fingerprint == inspect(whole).result_fingerprint


@pytest.mark.usefixtures("cluster")
def test_a_rank_that_dies_ends_the_run_and_the_same_command_goes_on(
    tiny_model: Path, tiny_facts: Path, tmp_path: Path
) -> None:
    settings = runs.config(tiny_model, tiny_facts, tmp_path, run={"name": "dies"}, cluster={"max_failures": 0})

    def kill_one(text: str) -> None:
        if "round 2" in text and "…" in text:
            victims = [p for p in psutil.Process().children(recursive=True) if "RankProcess" in " ".join(p.cmdline())]
            victims[-1].kill()

    with pytest.raises(RunFailedError, match=r"max_failures=0\): 1\. rank (old|new)-0 died during"):
        runs.on_cluster(settings, kill_one)
    assert [one.number for one in runs.read(settings).checkpoints.finished()] == [1]
    resumed = runs.on_cluster(settings)
    whole = runs.alone(runs.config(tiny_model, tiny_facts, tmp_path / "whole", cluster={"groups": 1}))
    assert runs.parts(resumed, 3) == runs.parts(whole, 3)


@pytest.mark.usefixtures("cluster")
def test_a_second_run_of_the_name_is_refused_while_the_first_is_at_work(config: Path) -> None:
    """Two drivers in one cluster; when the first one is gone, the second goes on."""
    words = [str(config), f"cluster.address={ray.get_runtime_context().gcs_address}", "train.epochs=200"]
    with running(*words) as first:
        wait_for(first, "round 1")
        second = update(*words)
        assert second.returncode == 2
        assert "is at work in" in second.stderr
        first.kill()
        first.wait()
    until_noticed()
    third = update(str(config), *words[1:2], "train.epochs=200", "method.rounds=3")
    assert third.returncode == 0, third.stdout + third.stderr
