"""One driver in a folder, whichever cluster it has."""

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dft_cluster.errors import InputError
from dft_cluster.runs import alone as locks
from dft_cluster.runs.alone import alone
from dft_cluster.runs.storage import Storage

OTHER = """
import platform, sys
from dft_cluster.runs.alone import alone
from dft_cluster.runs.storage import Storage
if len(sys.argv) > 2:
    platform.node = lambda: sys.argv[2]
with alone(Storage(sys.argv[1]), print):
    print("mine", flush=True)
    sys.stdin.read()
"""


def fail(text: str) -> None:
    raise AssertionError(text)


@contextmanager
def other(*words: str) -> Iterator["subprocess.Popen[str]"]:
    """Another process, at work in a folder; of another machine, where that is named."""
    command = [sys.executable, "-c", OTHER, *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "mine\n"
            yield process
        finally:
            process.kill()


def test_a_folder_is_refused_for_as_long_as_another_process_is_at_work_in_it(tmp_path: Path) -> None:
    folder = Storage(str(tmp_path))
    with other(str(tmp_path)) as process:
        for _ in range(2):
            with pytest.raises(InputError) as refused, alone(folder, fail):
                fail("two are at work")
            assert str(refused.value) == (
                f"run.name: process {process.pid} of {platform.node()} is at work in {tmp_path}; wait for it, stop it, or name "
                "another run"
            )
    with alone(folder, fail):
        assert (tmp_path / ".lock").read_text() == f"process {os.getpid()} of {platform.node()}"
        (tmp_path / "other").mkdir()
        with alone(folder.below("other"), fail):
            pass


def test_another_machine_is_waited_for_as_long_as_it_may_be_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(locks, "POLL", 0.01)
    monkeypatch.setattr(locks, "LEASE", 0.1)
    with other(str(tmp_path), "far"), pytest.raises(InputError, match=rf"of far .*gone, remove {tmp_path}/\.lock$"):
        alone(Storage(str(tmp_path)), said.append).__enter__()
    assert len(said) == 1 and "of far is at work in" in said[0]

    monkeypatch.setattr(locks, "LEASE", 60.0)
    with other(str(tmp_path), "far") as process, alone(Storage(str(tmp_path)), lambda _: process.kill()):
        assert (tmp_path / ".lock").read_text() == f"process {os.getpid()} of {platform.node()}"


def test_what_was_held_is_free_once_it_is_let_go(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(RuntimeError), alone(Storage(str(tmp_path)), fail):
            raise RuntimeError
    with other(str(tmp_path)):
        pass


def test_a_bucket_has_no_such_lock() -> None:
    with alone(Storage("mock://bucket/run"), fail), alone(Storage("mock://bucket/run"), fail):
        pass
