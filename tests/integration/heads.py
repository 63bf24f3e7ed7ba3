"""Clusters of one's own for tests: a head node with its job API, on loopback and free ports."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from tests.integration.test_job import end

RAY = str(Path(sys.executable).with_name("ray"))
Json = dict[str, Any]


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
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**self.environment, "PYTHONUNBUFFERED": "1"},  # or lines come by the page
        )  # fmt: skip
        try:
            yield process
        finally:
            end(process)


@contextmanager
def head_node(folder: Path, scaling: Json | None = None, **known: str) -> Iterator[Head]:
    """A head of one's own on free ports; `known` stands in its environment, and not in that of those who submit."""
    port, dashboard, client, agent, grpc, export = free_ports(6)
    sockets = Path(tempfile.mkdtemp(prefix="r-"))  # Ray's sockets need a short path
    kept = {name: value for name, value in os.environ.items() if name not in ("WANDB_SERVICE", "RAY_ADDRESS")}
    # `python` of a job is the one that these tests run with.
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
    environment = {**kept, "RAY_AUTH_MODE": "disabled", "PATH": path}
    options = ["--num-cpus=2"]
    if scaling is not None:
        nodes = folder / "nodes.json"
        nodes.write_text(
            json.dumps({**scaling, "provider": {"type": "fake_multinode", "gcs_address": f"127.0.0.1:{port}"}})
        )
        options = ["--num-cpus=0", f"--autoscaling-config={nodes}"]
        known |= {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    process = subprocess.Popen(
        [RAY, "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}", f"--dashboard-port={dashboard}",
         f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={grpc}",
         f"--metrics-export-port={export}", "--include-dashboard=true", f"--temp-dir={sockets}", *options],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment | known, cwd=folder,
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
    """Its job API answers."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        assert head.poll() is None, head.communicate()[0]
        with suppress(OSError), urlopen(f"http://127.0.0.1:{port}/api/jobs/", timeout=10):
            return
        time.sleep(0.5)
    raise TimeoutError("the head did not come up")
