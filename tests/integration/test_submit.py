"""A user's day on a cluster: submit a checkout, read the logs, stop the job, submit the same line again."""

import json
import re
import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from dft_cluster.patch import inspect
from tests.integration import runs
from tests.integration.heads import Json, head_node
from tests.integration.test_job import FILED, ROOT, SECRET, wait_for

# Enough rounds to be stopped in, however long the command takes that stops them.
LONG: Json = {"train": {"epochs": 160}, "method": {"rounds": 9}}
MARK = "said by the checkout that was uploaded"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what would be uploaded, which says so when it is run."""
    copy = tmp_path / "checkout"
    for name in ("dft_cluster", "jobs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    job = copy / "dft_cluster" / "cluster" / "job.py"
    job.write_text(job.read_text() + f"\n\nprint({MARK!r})\n")
    return copy


@pytest.fixture(scope="module")
def whole(tiny_model: Path, tiny_facts: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The outcome of a run that was never ended."""
    folder = tmp_path_factory.mktemp("whole")
    runs.alone(runs.config(tiny_model, tiny_facts, folder, **LONG, cluster={"groups": 1}))
    return inspect(folder / "dft" / "patch.safetensors").result_fingerprint


@pytest.mark.parametrize("ended_by", ["ray job stop", "the loss of the head"])
def test_submitted_ended_and_submitted_again(
    checkout: Path, tiny_model: Path, tiny_facts: Path, tmp_path: Path, whole: str, ended_by: str
) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"WANDB_API_KEY={FILED}\n")
    keys.chmod(0o600)
    kept: Json = {"cluster": {"secrets": str(keys)}, "track": {"wandb": "offline"}}
    settings = runs.config(tiny_model, tiny_facts, tmp_path / "runs", **LONG, **kept)
    config = tmp_path / "job.yaml"
    config.write_text(yaml.safe_dump(settings.to_json()))

    out = tmp_path / "runs" / "dft"
    with ExitStack() as second:
        with ExitStack() as heads:
            head = heads.enter_context(head_node(tmp_path, HF_TOKEN=SECRET))
            told = head.submit(checkout, config, "--no-wait")
            found = re.search(r"raysubmit_\w+", told)
            assert found, told
            with head.following(found[0]) as logs:
                wait_for(logs, "round 2 …")
                if ended_by == "ray job stop":
                    head.job("stop", found[0])
                    assert "was stopped" in head.job("status", found[0])
                    assert "round 1: reliability" in head.job("logs", found[0])
                    second.push(heads.pop_all())
        assert (out / "checkpoints" / "round-0001" / "manifest.json").exists()
        assert not (out / "patch.safetensors").exists()

        if ended_by != "ray job stop":
            head = second.enter_context(head_node(tmp_path, HF_TOKEN=SECRET))
        again = head.submit(checkout, config)
        assert "resuming after round" in again
        assert MARK in again, "the checkout was uploaded, and goes before what is installed"
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        assert lines[-1]["stop_reason"] == f"method.rounds={LONG['method']['rounds']} done"
        assert [line["round"] for line in lines[:-1]] == list(range(LONG["method"]["rounds"] + 1))
        asked = head.job("list")
        for secret in (SECRET, FILED):
            assert secret not in again + asked
            logs = list((head.folder / "session_latest" / "logs").rglob("job-driver-*.log"))
            assert logs
            for file in (*out.rglob("*"), *(head.folder / "session_latest" / "logs").rglob("*")):
                assert not file.is_file() or secret.encode() not in file.read_bytes(), file

    assert inspect(out / "patch.safetensors").result_fingerprint == whole


NODES: Json = {
    "cluster_name": "tried",
    "max_workers": 2,
    "upscaling_speed": 2,
    "idle_timeout_minutes": 5,
    "head_node_type": "ray.head.default",
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "worker": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2},
    },
    # What a cluster launcher would fill in.
    **{key: {} for key in ("auth", "docker", "file_mounts")},
    **{f"{whose}{what}_commands": [] for whose in ("head_", "worker_") for what in ("setup", "start_ray")},
    **{
        key: []
        for key in (
            "cluster_synced_files",
            "initialization_commands",
            "rsync_exclude",
            "rsync_filter",
            "setup_commands",
        )
    },
    "file_mounts_sync_continuously": False,
}


def test_an_autoscaler_brings_the_nodes_that_a_job_waits_for(
    checkout: Path, tiny_model: Path, tiny_facts: Path, tmp_path: Path
) -> None:
    """Ray's own autoscaler, which starts nodes on this machine when they are asked for."""
    waits = {"groups": 2, "ranks_per_group": 1, "threads": 1, "wait": 120}
    config = tmp_path / "job.yaml"
    config.write_text(yaml.safe_dump(runs.config(tiny_model, tiny_facts, tmp_path / "runs", cluster=waits).to_json()))
    with head_node(tmp_path, NODES) as head:
        said = head.submit(checkout, config)
    assert "waiting for room: 2 group(s) of 1 rank(s)" in said
    assert "round 3: reliability" in said
