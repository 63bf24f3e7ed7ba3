"""ray_cluster.yaml by Ray's own loader and schema, as it stands and as its comments say for a cloud."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "ray_cluster.yaml").read_text(encoding="utf-8")


def on_premises() -> dict[str, Any]:
    return yaml.safe_load(TEXT)


def in_a_cloud() -> dict[str, Any]:
    """The lines behind `#|` in the place of the keys that they name."""
    written = yaml.safe_load(
        "\n".join(line.removeprefix("#| ") for line in TEXT.splitlines() if line.startswith("#| "))
    )
    return on_premises() | written


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_ray_takes_it_for_a_head_and_its_workers(workers: int) -> None:
    config = on_premises()
    config["provider"]["worker_ips"] = config["provider"]["worker_ips"][:workers]
    prepared = prepare_config(config)
    validate_config(prepared)
    node = prepared["available_node_types"]["local.cluster.node"]
    assert (node["min_workers"], node["max_workers"], prepared["max_workers"]) == (workers, workers, workers)


def test_ray_takes_it_for_a_cloud() -> None:
    prepared = prepare_config(in_a_cloud())
    validate_config(prepared)
    assert prepared["available_node_types"]["gpu"]["max_workers"] == prepared["max_workers"] == 2
    assert prepared["head_start_ray_commands"] == on_premises()["head_start_ray_commands"]


def test_a_wrong_key_would_be_seen() -> None:
    with pytest.raises(Exception, match="Additional properties are not allowed"):
        validate_config(prepare_config(on_premises() | {"worker_nodez": {}}))


def test_the_cluster_is_closed() -> None:
    config = on_premises()
    options = config["docker"]["run_options"]
    token = next(option for option in options if "RAY_AUTH_TOKEN_PATH" in option).split("=")[-1]
    assert "--env=RAY_AUTH_MODE=token" in options
    assert token in config["file_mounts"]
    (start,) = [command for command in config["head_start_ray_commands"] if "--head" in command]
    assert "--dashboard-host=127.0.0.1" in start


def test_head_and_workers_meet() -> None:
    config = on_premises()
    (head,) = [command for command in config["head_start_ray_commands"] if "--head" in command]
    (worker,) = [command for command in config["worker_start_ray_commands"] if "ray start" in command]
    assert "--port=6379" in head
    assert "--address=$RAY_HEAD_IP:6379" in worker
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in head


def test_no_key_stands_in_it() -> None:
    assert not [word for word in ("WANDB_API_KEY", "HF_TOKEN", "password") if word in TEXT]
