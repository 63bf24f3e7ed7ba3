"""What `ray job submit --working-dir .` sends, by Ray's own packing; and the environment file for nodes without the packages."""

import shutil
import subprocess
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import create_package
from ray.runtime_env import RuntimeEnv

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 2 * 2**20


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The files that git knows, as a clone would have them, and what a user's work adds to them."""
    known = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=False)
    if known.returncode != 0:
        pytest.skip("this is no git checkout")
    clone = tmp_path / "clone"
    for name in filter(None, known.stdout.split("\0")):
        if (ROOT / name).is_file():
            place = clone / name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, place)
    # They may be too new for git to know them.
    for name in (".rayignore", ".gitignore"):
        shutil.copyfile(ROOT / name, clone / name)
    return clone


def uploaded(folder: Path, package: Path) -> tuple[int, set[str]]:
    """Bytes sent, and the names of the files in them."""
    create_package(str(folder), package, include_gitignore=True, excludes=get_runtime_env_default_excludes())
    with zipfile.ZipFile(package) as packed:
        return package.stat().st_size, {name for name in packed.namelist() if not name.endswith("/")}


def test_a_clean_checkout_is_a_small_upload_with_all_that_a_job_needs(checkout: Path, tmp_path: Path) -> None:
    size, names = uploaded(checkout, tmp_path / "package.zip")
    assert size < LIMIT
    assert {"jobs/update.py", "jobs/configs/llama2_7b_zsre.yaml", "dft_cluster/facts/world.jsonl"} <= names
    assert {name for name in names if name.split("/")[0] in ("tests", "docs", "benchmarks", "docker", ".ci")} == set()


def test_runs_environments_and_keys_that_lie_about_are_not_sent(checkout: Path, tmp_path: Path) -> None:
    before = uploaded(checkout, tmp_path / "before.zip")[1]
    for name in (
        ".git/objects/pack", ".venv/lib/torch.so", "runs/demo/patch.safetensors", "wandb/x", "keys.env", "jobs/keys.env",
        "build/x", "dft_cluster/__pycache__/a.pyc", "dft_cluster.egg-info/PKG-INFO",
    ):  # fmt: skip
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_bytes(b"x" * 1000)
    assert uploaded(checkout, tmp_path / "after.zip")[1] == before


def test_the_environment_file_is_the_pinned_set_and_holds_no_variables() -> None:
    written = yaml.safe_load((ROOT / "jobs" / "runtime_env.yaml").read_text(encoding="utf-8"))
    pins = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    assert written["pip"] == [pin for pin in pins if not pin.startswith("ray[")]
    assert RuntimeEnv(**written).pip_config()["packages"] == written["pip"]
    assert "env_vars" not in written
