"""What lies in a bucket is copied once for all processes of a node, and goes with the last of them."""

import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from dft_cluster.runs.node_copy import on_this_node
from dft_cluster.runs.storage import Storage
from tests.unit.runs.conftest import remote


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def bucket(tmp_path: Path) -> Storage:
    storage = remote(tmp_path / "bucket")
    storage.make("base")
    storage.write("base/a", b"one")
    storage.write("base/b", b"two")
    return storage


def left(temporary: Path) -> list[Path]:
    return [file for file in temporary.rglob("*") if file.is_file()]


def test_all_that_use_it_at_once_share_it_and_the_last_removes_it(bucket: Storage, temporary: Path) -> None:
    with on_this_node(bucket, "base") as first:
        with on_this_node(bucket, "base") as second:
            assert first == second
        assert [(first / name).read_bytes() for name in "ab"] == [b"one", b"two"]
        with on_this_node(bucket, "base/a") as file:
            assert file.read_bytes() == b"one"
        assert len(left(temporary)) == 3
    assert left(temporary) == []


def test_other_content_is_another_copy(bucket: Storage) -> None:
    with on_this_node(bucket, "base") as before:
        bucket.write("base/b", b"three")
        with on_this_node(bucket, "base") as after:
            assert ((before / "b").read_bytes(), (after / "b").read_bytes()) == (b"two", b"three")


def test_what_is_a_folder_here_is_not_copied(tmp_path: Path, temporary: Path) -> None:
    with on_this_node(Storage(str(tmp_path)), "base") as found:
        assert found == tmp_path / "base"
    assert left(temporary) == []


def test_what_a_killed_process_left_goes_with_the_next(bucket: Storage, temporary: Path, tmp_path: Path) -> None:
    script = (
        "import os, sys, tempfile\nfrom pathlib import Path\ntempfile.tempdir = sys.argv[1]\n"
        "from dft_cluster.runs.node_copy import on_this_node\nfrom tests.unit.runs.conftest import remote\n"
        "with on_this_node(remote(Path(sys.argv[2])), 'base'):\n    os._exit(9)\n"
    )
    root = Path(__file__).resolve().parents[3]
    words = [sys.executable, "-c", script, str(temporary), str(tmp_path / "bucket")]
    assert subprocess.run(words, env={**os.environ, "PYTHONPATH": str(root)}, check=False).returncode == 9
    assert len(left(temporary)) == 3
    with on_this_node(bucket, "base/a") as found:
        assert found.read_bytes() == b"one"
        assert len(left(temporary)) == 2, "that of the killed process is gone"
    assert left(temporary) == []


def test_many_that_come_and_go_never_meet_half_a_copy(bucket: Storage, temporary: Path) -> None:
    wrong: list[BaseException] = []

    def use() -> None:
        try:
            for _ in range(20):
                with on_this_node(bucket, "base") as found:
                    assert [(found / name).read_bytes() for name in "ab"] == [b"one", b"two"]
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=use) for _ in range(6)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert wrong == []
    assert left(temporary) == []
