"""What the nodes of a cluster have."""

from pathlib import Path

import pytest
import ray

from dft_cluster.cluster.launch import connect
from dft_cluster.cluster.look import capacity
from dft_cluster.errors import InputError
from dft_cluster.planning.capacity import Capacity, Node
from dft_cluster.runs.console import Console
from tests.integration import runs


def test_where_jobs_are_submitted_is_no_cluster_to_join(
    tiny_model: Path, tiny_facts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    settings = runs.config(tiny_model, tiny_facts, tmp_path)
    with pytest.raises(
        InputError, match=r"RAY_ADDRESS=http://127\.0\.0\.1:8265 is where jobs are submitted.*env -u RAY_ADDRESS"
    ):
        connect(settings, Console(runs.silent))


@pytest.mark.usefixtures("cluster")
def test_the_nodes_of_a_cluster_are_asked(tiny_model: Path, tiny_facts: Path, tmp_path: Path) -> None:
    there = {"address": ray.get_runtime_context().gcs_address}
    settings = runs.config(tiny_model, tiny_facts, tmp_path, cluster=there)
    found = capacity(settings, Console(runs.silent))
    assert found == Capacity((Node(Node.here().host_bytes, 0, 0),))
    alone = runs.config(tiny_model, tiny_facts, tmp_path, cluster={"address": "local"})
    assert capacity(alone, Console(runs.silent)) is None
