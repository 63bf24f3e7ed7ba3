"""One driver in a folder, whichever cluster it has."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from dft_cluster.errors import InputError
from dft_cluster.runs.alone import alone
from dft_cluster.runs.storage import Storage

OTHER = """
import sys
from dft_cluster.runs.alone import alone
from dft_cluster.runs.storage import Storage
with alone(Storage(sys.argv[1])):
    print("mine", flush=True)
    sys.stdin.read()
"""


def other(folder: Path) -> "subprocess.Popen[str]":
    words = [sys.executable, "-c", OTHER, str(folder)]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "mine\n"
    return process


def test_a_folder_is_refused_for_as_long_as_another_process_is_at_work_in_it(tmp_path: Path) -> None:
    with other(tmp_path) as process:
        try:
            told = f"run.name: process {process.pid} of {platform.node()} is at work in {tmp_path}; wait for it"
            for _ in range(2):
                with pytest.raises(InputError, match=told), alone(Storage(str(tmp_path))):
                    raise AssertionError("two are at work")
        finally:
            process.kill()
    with alone(Storage(str(tmp_path))):
        assert (tmp_path / ".lock").read_text() == f"process {os.getpid()} of {platform.node()}"
        (tmp_path / "other").mkdir()
        with alone(Storage(str(tmp_path / "other"))):
            pass


def test_what_was_held_is_free_once_it_is_let_go(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(RuntimeError), alone(Storage(str(tmp_path))):
            raise RuntimeError
    with other(tmp_path) as process:
        process.kill()


def test_a_bucket_has_no_such_lock() -> None:
    with alone(Storage("mock://bucket/run")), alone(Storage("mock://bucket/run")):
        pass
