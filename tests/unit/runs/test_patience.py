"""Storage that refuses for a while."""

import errno
from pathlib import Path

import pytest
import torch

from dft_cluster.runs import patience
from dft_cluster.runs.parts import Part, Stored, write
from dft_cluster.runs.patience import patiently
from dft_cluster.runs.storage import Storage


@pytest.fixture(autouse=True)
def _hurried(monkeypatch):
    monkeypatch.setattr(patience, "PAUSES", (0.01, 0.01, 0.01, 0.01))


def test_an_error_that_passes_is_waited_out():
    errors = [OSError(errno.EIO, "busy"), OSError(errno.ENOSPC, "full")]

    @patiently
    def work(value):
        if errors:
            raise errors.pop()
        return value

    assert work(7) == 7
    assert not errors


def test_one_that_stays_is_raised_after_the_last_attempt():
    asked = []

    @patiently
    def work():
        asked.append(1)
        raise OSError(errno.EIO, "broken for good")

    with pytest.raises(OSError, match="for good"):
        work()
    assert len(asked) == 5


def test_what_is_patient_within_is_tried_again_with_the_whole_alone():
    asked = []

    @patiently
    def inner():
        asked.append(1)
        raise OSError(errno.EIO, "broken for good")

    @patiently
    def outer():
        inner()

    with pytest.raises(OSError, match="for good"):
        outer()
    assert len(asked) == 5
    with pytest.raises(OSError, match="for good"):
        inner()
    assert len(asked) == 10


def test_a_part_is_read_with_patience(tmp_path, monkeypatch):
    path = tmp_path / "part"
    with path.open("wb") as stream:
        write(stream, "part", [Stored(0, 0, torch.arange(3.0))])
    errors, opened = [OSError(errno.EIO, "busy"), OSError(errno.EIO, "busy")], Path.open

    def failing(self, *args, **kwargs):
        if errors:
            raise errors.pop()
        return opened(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", failing)
    part, out = Part(path), torch.zeros(3)
    errors.append(OSError(errno.EIO, "busy"))
    part.overlay(0, 0, out)
    assert out.tolist() == [0, 1, 2]
    assert not errors


def test_what_no_waiting_changes_is_raised_at_once(tmp_path):
    asked = []

    @patiently
    def work():
        asked.append(1)
        return (tmp_path / "none").read_bytes()

    with pytest.raises(FileNotFoundError):
        work()
    assert len(asked) == 1


def test_a_line_cut_short_stays_one_of_its_own(tmp_path):
    storage = Storage(str(tmp_path))
    (tmp_path / "lines").write_bytes(b'{"a": 1}\n{"b"')
    storage.append("lines", '{"c": 3}')
    assert storage.read("lines") == b'{"a": 1}\n{"b"\n{"c": 3}\n'


def test_a_full_disk_leaves_the_old_file(small_disk):
    storage = Storage(str(small_disk))
    storage.write("manifest.json", b"old")
    with pytest.raises(OSError, match="No space left"):
        storage.write("manifest.json", b"x" * (2 << 20))
    assert storage.read("manifest.json") == b"old"
    assert [file.name for file in small_disk.iterdir()] == ["manifest.json"]
