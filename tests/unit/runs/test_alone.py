"""One driver in a folder, whichever cluster it has."""

import contextlib
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

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


def said_in(folder: Path) -> str:
    return (folder / ".lock").read_text().splitlines()[0]


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
        assert said_in(tmp_path) == f"process {os.getpid()} of {platform.node()}"
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
        assert said_in(tmp_path) == f"process {os.getpid()} of {platform.node()}"


def test_another_machine_may_have_the_same_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "POLL", 0.01)
    with other(str(tmp_path)) as process, monkeypatch.context() as here:
        here.setattr(locks, "boot", lambda: "another start")
        with alone(Storage(str(tmp_path)), lambda _: process.kill()):
            assert (tmp_path / ".lock").read_text().splitlines()[1] == "another start"


def test_a_lock_that_was_removed_is_not_the_one_that_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a lost machine's lock that was removed by hand, and one that a third driver has put there since."""
    monkeypatch.setattr(locks, "POLL", 0.01)
    third = contextlib.ExitStack()
    taken = locks._taken

    def meanwhile(file: IO[str]) -> bool:
        got = taken(file)
        if got and not seen:
            seen.append(file.name)
            (tmp_path / ".lock").unlink()
            third.enter_context(other(str(tmp_path)))
        return got

    seen: list[str] = []
    monkeypatch.setattr(locks, "_taken", meanwhile)
    with third, pytest.raises(InputError, match="is at work in"):
        alone(Storage(str(tmp_path)), fail).__enter__()
    assert seen


def test_a_fork_of_a_driver_that_let_go_holds_nothing(tmp_path: Path) -> None:
    with alone(Storage(str(tmp_path)), fail):
        end, begin = os.pipe()
        child = os.fork()
        if child == 0:  # until its parent has closed the pipe
            os.close(begin)
            os.read(end, 1)
            os._exit(0)
        os.close(end)
    try:
        with other(str(tmp_path)):
            pass
    finally:
        os.close(begin)
        os.waitpid(child, 0)


def test_what_was_held_is_free_once_it_is_let_go(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(RuntimeError), alone(Storage(str(tmp_path)), fail):
            raise RuntimeError
    with other(str(tmp_path)):
        pass


def test_a_bucket_has_no_such_lock() -> None:
    with alone(Storage("mock://bucket/run"), fail), alone(Storage("mock://bucket/run"), fail):
        pass
