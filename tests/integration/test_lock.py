"""One run of a name at a time, among drivers of one cluster that come at the same moment."""

import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import ray
from ray._private.state import jobs

from dft_cluster.cluster.lock import address
from dft_cluster.errors import InputError
from dft_cluster.runs.storage import Storage
from tests.integration import runs

DRIVER = """
import sys, time
from pathlib import Path
import ray
from dft_cluster.cluster.lock import hold
from dft_cluster.errors import InputError
from dft_cluster.runs.storage import Storage

head, folder, signs, name = sys.argv[1:]
ray.init(address=head, log_to_driver=False, configure_logging=False)
signs = Path(signs)
(signs / f"{name}-ready").touch()
while not (signs / "go").exists():
    time.sleep(0.01)
try:
    hold(Storage(folder))
    said = "mine"
except InputError as error:
    said = str(error)
(signs / f"{name}-says").write_text(said)
while not (signs / "end").exists():
    time.sleep(0.05)
"""


def wait_for(*files: Path) -> None:
    until = time.monotonic() + 60
    while not all(file.exists() for file in files):
        assert time.monotonic() < until, f"{files} did not come"
        time.sleep(0.05)


def until_noticed() -> None:
    """All drivers but this process have ended, as far as the cluster knows."""
    own, until = ray.get_runtime_context().get_job_id(), time.monotonic() + 60
    while any(job["JobID"] != own and not job["IsDead"] for job in jobs()):
        assert time.monotonic() < until, "the cluster never noticed"
        time.sleep(0.1)


@pytest.mark.usefixtures("cluster")
def test_of_drivers_that_find_the_last_one_dead_one_alone_holds(
    tiny_model: Path, tiny_facts: Path, tmp_path: Path
) -> None:
    settings = runs.config(tiny_model, tiny_facts, tmp_path, run={"name": "runs"})
    head, folder = ray.get_runtime_context().gcs_address, tmp_path / "runs"
    folder.mkdir()
    ways = [str(folder), f"{folder}/", f"{folder}/../runs", str(tmp_path / "link")]
    (tmp_path / "link").symlink_to(folder)

    def drivers(stack: ExitStack, signs: Path, folders: list[str]) -> list[subprocess.Popen[bytes]]:
        signs.mkdir()
        started = []
        for number, way in enumerate(folders):
            words = [sys.executable, "-c", DRIVER, head, way, str(signs), str(number)]
            driver = stack.enter_context(subprocess.Popen(words))
            stack.callback(driver.kill)
            started.append(driver)
        wait_for(*(signs / f"{number}-ready" for number in range(len(folders))))
        (signs / "go").touch()
        wait_for(*(signs / f"{number}-says" for number in range(len(folders))))
        return started

    with ExitStack() as stack:
        [first] = drivers(stack, tmp_path / "first", ways[:1])
        assert (tmp_path / "first" / "0-says").read_text() == "mine"
        first.kill()
        first.wait()
        until_noticed()
        drivers(stack, tmp_path / "then", ways)
        said = sorted((tmp_path / "then" / f"{number}-says").read_text() for number in range(len(ways)))
        with pytest.raises(InputError, match=rf"job \w+ of this cluster is at work in {folder}"):
            runs.on_cluster(settings)
    assert said[0] == "mine"
    assert all("is at work in" in one for one in said[1:])


def test_a_folder_has_one_address(tmp_path: Path) -> None:
    assert (
        address(Storage(f"{tmp_path}/a/../b")) == address(Storage(str(tmp_path / "b"))) == str(tmp_path.resolve() / "b")
    )
    stored = {name: address(Storage(f"s3://bucket/{name}?region=us-east-1")) for name in ("runs/a", "runs//a", "other")}
    assert stored["runs/a"] == stored["runs//a"] != stored["other"]
    servers = [f"s3://bucket/runs/a?region=us-east-1&endpoint_override=127.0.0.1%3A{port}" for port in (1, 2)]
    assert len({address(Storage(uri)) for uri in servers} | {stored["runs/a"]}) == 3
