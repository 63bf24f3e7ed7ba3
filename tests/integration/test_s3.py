"""A run whose directory is a bucket, behind a real S3 API on loopback."""

import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray

from dft_cluster.comparison.loading import checked
from dft_cluster.comparison.run import compare
from dft_cluster.local import in_this_process
from dft_cluster.patch import inspect
from dft_cluster.runs.console import Console
from dft_cluster.runs.storage import Storage
from tests import tiny
from tests.integration import runs
from tests.integration.proxy import Proxy
from tests.integration.runs import Crash

ONE = {"groups": 1, "threads": 1}


@pytest.fixture(scope="module")
def bucket(cluster: None) -> Iterator[str]:
    """A fresh bucket of a server that ends with the tests. Ray is up before this process has the keys: its ranks have none."""
    with serving_s3() as port:
        yield address(port)


def address(port: int) -> str:
    return f"s3://runs/all?endpoint_override=127.0.0.1%3A{port}&scheme=http&region=us-east-1"


@contextmanager
def serving_s3() -> Iterator[int]:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serving = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    kept = {name: os.environ.get(name) for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    os.environ.update(AWS_ACCESS_KEY_ID="loopback", AWS_SECRET_ACCESS_KEY="loopback")
    try:
        _answers(f"http://127.0.0.1:{port}/", serving)
        make = urllib.request.Request(f"http://127.0.0.1:{port}/runs", method="PUT")
        urllib.request.urlopen(make).close()
        yield port
    finally:
        serving.terminate()
        serving.wait(timeout=30)
        for name, value in kept.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _answers(address: str, serving: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 60
    while serving.poll() is None and time.monotonic() < until:
        try:
            urllib.request.urlopen(address).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    pytest.fail("the S3 server never answered")


def test_a_run_in_a_bucket_is_the_run_in_a_folder(
    bucket: str, tiny_model: Path, tiny_facts: Path, tmp_path: Path
) -> None:
    """Crashed in round 2 and taken up again; the warmed base, the export and the report lie in the bucket."""
    more = {"warmup": {"epochs": 1}, "method": {"rounds": 2}, "cluster": ONE}
    here = runs.alone(runs.config(tiny_model, tiny_facts, tmp_path, **more))
    there = runs.config(
        tiny_model, tiny_facts, tmp_path, **more, run={"dir": bucket, "export": True}, track={"wandb": "offline"}
    )
    storage = Storage(bucket).below("dft")

    def crash(text: str) -> None:
        if "round 2" in text:
            assert storage.folders("wandb"), "what was tracked until now does not go with the driver"
            raise Crash

    with pytest.raises(Crash):
        runs.alone(there, crash)
    record = runs.alone(there)
    assert storage.local is None
    patch = tmp_path / "patch.safetensors"
    patch.write_bytes(storage.read("patch.safetensors"))
    assert inspect(patch).result_fingerprint == inspect(tmp_path / "dft" / "patch.safetensors").result_fingerprint
    for name in ("config.json", "metrics.jsonl", "report.html", "base/model.safetensors", "model/model.safetensors"):
        assert storage.size(name), name
    assert [line["round"] for line in record.rounds] == [line["round"] for line in here.rounds] == [0, 1, 2]


def test_a_comparison_in_a_bucket(bucket: str, tiny_model: Path, tmp_path: Path) -> None:
    tree = {
        "base": {
            "model": {"name": str(tiny_model)}, "facts": {"path": str(tiny.facts_file(tmp_path, 12))},
            "method": {"rounds": 1}, "train": {"lr": 2e-3, "precision": "fp32", "epochs": 1}, "cluster": ONE,
        },
        "models": {"tiny": {}}, "data": {"places": {}}, "methods": {"dft": {}, "full": {"method": {"name": "full"}}},
        "report": {"facts": 4}, "draws": 100, "run": {"name": "both", "dir": bucket}, "track": {"wandb": "off"},
        "search": {"facts": 2, "trials": 2, "over": {"full": {"train.lr": [1e-3, 2e-3]}}},
    }  # fmt: skip
    found = compare(checked(tree), in_this_process, Console(runs.silent))
    assert [cell["status"] for cell in found["cells"]] == ["finished", "finished"]
    storage = Storage(bucket).below("both")
    assert storage.read_json("comparison.json") == found
    assert storage.size("comparison.html")
    said: list[str] = []
    assert compare(checked(tree), in_this_process, Console(said.append)) == found
    assert sum("is finished" in line for line in said) == 2


def test_finished_rounds_are_set_aside_in_a_bucket_too(bucket: str, tiny_model: Path, tiny_facts: Path) -> None:
    there = runs.config(tiny_model, tiny_facts, Path(), method={"rounds": 2}, cluster=ONE,
                        run={"dir": bucket, "name": "aside"})  # fmt: skip
    storage = Storage(bucket).below("aside")

    def crash(text: str) -> None:
        if "round 2" in text:
            raise Crash

    with pytest.raises(Crash):
        runs.alone(there, crash)
    whole = storage.read("checkpoints/round-0001/rank-00000.safetensors")
    storage.system.delete_file(storage.path("metrics.jsonl"))
    record = runs.alone(there)
    assert [line["round"] for line in record.rounds] == [0, 1, 2]
    assert storage.read("checkpoints/aside-round-0001-1/rank-00000.safetensors") == whole
    assert storage.exists("checkpoints/aside-round-0001-1/manifest.json")


@pytest.fixture
def pair(cluster: None, tmp_path: Path) -> dict[str, Any]:
    """Two groups of ranks of their own, which have the bucket's keys from a file."""
    keys = tmp_path / "keys"
    keys.write_text("AWS_ACCESS_KEY_ID=loopback\nAWS_SECRET_ACCESS_KEY=loopback\n")
    keys.chmod(0o600)
    return {"groups": 2, "ranks_per_group": 1, "threads": 1, "secrets": str(keys)}


@pytest.fixture
def proxy(cluster: None) -> Iterator[Proxy]:
    with serving_s3() as port:
        made = Proxy(port)
        yield made
        made.close()


def fingerprint(uri: str, folder: Path) -> str:
    return inspect(Storage(uri).below("dft").fetch("patch.safetensors", folder)).result_fingerprint


def test_storage_that_is_slow_and_then_away_for_a_while_is_waited_for(
    proxy: Proxy, pair: dict[str, Any], tiny_model: Path, tiny_facts: Path, tmp_path: Path
) -> None:
    more: Any = {"method": {"rounds": 2}, "cluster": pair}
    runs.alone(runs.config(tiny_model, tiny_facts, tmp_path, method={"rounds": 2}, cluster=ONE))

    def once_more() -> None:
        if proxy.turned_away == 1:
            threading.Timer(3.0, proxy.open).start()

    def say(text: str) -> None:
        if "round 1 …" in text:
            proxy.delay = 0.1
        elif "round 2 …" in text:
            proxy.on_turning_away = once_more
            proxy.shut()

    there = runs.config(tiny_model, tiny_facts, tmp_path, **more, run={"dir": address(proxy.port)})
    record = runs.on_cluster(there, say)
    assert proxy.turned_away > 0
    assert [line["round"] for line in record.rounds] == [0, 1, 2]
    assert fingerprint(there.run.dir, tmp_path / "there") == fingerprint(str(tmp_path), tmp_path / "here")


def test_storage_that_stays_away_ends_the_run_with_the_round_before_whole(
    proxy: Proxy, pair: dict[str, Any], tiny_model: Path, tiny_facts: Path, tmp_path: Path
) -> None:
    more: Any = {"method": {"rounds": 2}, "cluster": pair}
    runs.alone(runs.config(tiny_model, tiny_facts, tmp_path, method={"rounds": 2}, cluster=ONE))
    there = runs.config(tiny_model, tiny_facts, tmp_path, **more, run={"dir": address(proxy.port)})
    with pytest.raises(OSError, match="AWS Error"):
        runs.on_cluster(there, lambda text: proxy.shut() if "round 2 …" in text else None)
    proxy.open()
    assert [one.number for one in runs.read(there).checkpoints.finished()] == [1]
    said: list[str] = []
    runs.on_cluster(there, said.append)
    assert any("resuming after round 1" in line for line in said)
    assert fingerprint(there.run.dir, tmp_path / "there") == fingerprint(str(tmp_path), tmp_path / "here")


def test_ranks_of_a_cluster_write_to_the_bucket(
    bucket: str, pair: dict[str, Any], tiny_model: Path, tiny_facts: Path, tmp_path: Path
) -> None:
    """The keys come by `cluster.secrets` alone."""
    assert ray.get(_variable.remote("AWS_ACCESS_KEY_ID")) is None
    settings = runs.config(tiny_model, tiny_facts, tmp_path, method={"rounds": 1}, cluster=pair,
                           run={"dir": bucket, "name": "pair"})  # fmt: skip
    record = runs.on_cluster(settings)
    assert record.result is not None
    assert Storage(bucket).below("pair").size("checkpoints/round-0001/rank-00000.safetensors")


@ray.remote(num_cpus=0)
def _variable(name: str) -> str | None:
    return os.environ.get(name)
