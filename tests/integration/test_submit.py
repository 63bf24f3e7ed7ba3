"""A user's day on a cluster: submit a checkout, read the logs, stop the job, submit the same line again."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from dft_cluster.patch import inspect
from tests.integration import runs
from tests.integration.test_job import FILED, ROOT, SECRET, end, wait_for

RAY = str(Path(sys.executable).with_name("ray"))
Json = dict[str, Any]
ROUNDS = 10
MARK = "said by the checkout that was uploaded"


@dataclass(frozen=True)
class Head:
    """A cluster of one node, with its job API and the folder of its logs."""

    address: str
    folder: Path
    environment: dict[str, str]

    def job(self, verb: str, *words: str) -> str:
        done = subprocess.run(
            [RAY, "job", verb, "--address", self.address, *words],
            capture_output=True, text=True, timeout=200, env=self.environment, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def submit(self, checkout: Path, config: Path, *options: str) -> str:
        words = ["python", "jobs/update.py", str(config), "cluster.address=auto"]
        return self.job("submit", *options, "--working-dir", str(checkout), "--", *words)

    @contextmanager
    def following(self, job: str) -> Iterator[subprocess.Popen[str]]:
        process = subprocess.Popen(
            [RAY, "job", "logs", "--address", self.address, "--follow", job],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=self.environment,
        )  # fmt: skip
        try:
            yield process
        finally:
            end(process)


@contextmanager
def head_node(tmp_path: Path, scaling: Json | None = None) -> Iterator[Head]:
    """A head of one's own on free ports, with a key in its environment."""
    port, dashboard, client, agent, grpc, export = free_ports(6)
    sockets = Path(tempfile.mkdtemp(prefix="r-"))  # Ray's sockets need a short path
    kept = {name: value for name, value in os.environ.items() if name not in ("WANDB_SERVICE", "RAY_ADDRESS")}
    # `python` of a job is the one that these tests run with.
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
    environment = {**kept, "RAY_AUTH_MODE": "disabled", "PATH": path}
    known = {**environment, "HF_TOKEN": SECRET}
    options = ["--num-cpus=2"]
    if scaling is not None:
        nodes = tmp_path / "nodes.json"
        nodes.write_text(
            json.dumps({**scaling, "provider": {"type": "fake_multinode", "gcs_address": f"127.0.0.1:{port}"}})
        )
        options = ["--num-cpus=0", f"--autoscaling-config={nodes}"]
        known |= {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    process = subprocess.Popen(
        [RAY, "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}", f"--dashboard-port={dashboard}",
         f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={grpc}",
         f"--metrics-export-port={export}", "--include-dashboard=true", f"--temp-dir={sockets}", *options],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=known, cwd=tmp_path,
    )  # fmt: skip
    try:
        wait_until_up(dashboard, process)
        yield Head(f"http://127.0.0.1:{dashboard}", sockets, environment)
    finally:
        end(process)
        shutil.rmtree(sockets, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    """Held together, so that no two are the same."""
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def wait_until_up(port: int, head: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        assert head.poll() is None, head.communicate()[0]
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                time.sleep(2)
                return
        time.sleep(0.5)
    pytest.fail("the head did not come up")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what would be uploaded, which says so when it is run."""
    copy = tmp_path / "checkout"
    for name in ("dft_cluster", "jobs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    job = copy / "dft_cluster" / "cluster" / "job.py"
    job.write_text(job.read_text() + f"\n\nprint({MARK!r})\n")
    return copy


@pytest.mark.parametrize("ended_by", ["ray job stop", "the loss of the head"])
def test_submitted_ended_and_submitted_again(
    checkout: Path, tiny_model: Path, tiny_facts: Path, tmp_path: Path, ended_by: str
) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"WANDB_API_KEY={FILED}\n")
    keys.chmod(0o600)
    # Enough rounds to be stopped in, however long the command takes that stops them.
    long: Json = {"train": {"epochs": 150}, "method": {"rounds": ROUNDS}}
    kept: Json = {"cluster": {"secrets": str(keys)}, "track": {"wandb": "offline"}}
    settings = runs.config(tiny_model, tiny_facts, tmp_path / "runs", **long, **kept)
    config = tmp_path / "job.yaml"
    config.write_text(yaml.safe_dump(settings.to_json()))

    out = tmp_path / "runs" / "dft"
    with ExitStack() as second:
        with ExitStack() as heads:
            head = heads.enter_context(head_node(tmp_path))
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
            head = second.enter_context(head_node(tmp_path))
        again = head.submit(checkout, config)
        assert "resuming after round" in again
        assert MARK in again, "the checkout was uploaded, and goes before what is installed"
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        assert lines[-1]["stop_reason"] == f"method.rounds={ROUNDS} done"
        assert [line["round"] for line in lines[:-1]] == list(range(ROUNDS + 1))
        asked = head.job("list")
        for secret in (SECRET, FILED):
            assert secret not in again + asked
            for file in (*out.rglob("*"), *(head.folder / "session_latest" / "logs").rglob("*")):
                assert not file.is_file() or secret.encode() not in file.read_bytes(), file

    whole = runs.config(tiny_model, tiny_facts, tmp_path / "whole", **long)
    runs.alone(whole.model_copy(update={"cluster": whole.cluster.model_copy(update={"groups": 1})}))
    assert (
        inspect(out / "patch.safetensors").result_fingerprint
        == inspect(tmp_path / "whole" / "dft" / "patch.safetensors").result_fingerprint
    )


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
