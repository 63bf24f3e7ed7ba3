import json
from pathlib import Path

import pytest
from pyarrow import fs

from dft_cluster.errors import InputError
from dft_cluster.runs.storage import Storage


def test_what_is_written_is_read(storage):
    storage.write("a.bin", b"\x00\xff" * 1000)
    assert storage.read("a.bin") == b"\x00\xff" * 1000
    storage.write("a.bin", b"")
    assert storage.read("a.bin") == b""
    storage.write_json("a.json", {"θ": [1, None, "é"]})
    assert storage.read_json("a.json") == {"θ": [1, None, "é"]}


def test_what_there_is(storage):
    assert not storage.exists("a") and storage.size("a") is None and storage.folders("a") == []
    storage.make("a/c/d")
    storage.make("a/b")
    storage.write("a/x", b"123")
    assert storage.exists("a") and storage.exists("a/x") and storage.size("a/x") == 3 and storage.size("a") is None
    assert storage.folders("a") == ["b", "c"]
    storage.remove("a")
    storage.remove("a")
    assert not storage.exists("a") and not storage.exists("a/x")


def test_lines_are_added_at_the_end(storage):
    for line in ("one", "zwölf", ""):
        storage.append("lines", line)
    assert storage.read("lines").decode() == "one\nzwölf\n\n"


def test_a_stream_is_written(storage):
    storage.make("a")
    with storage.writer("a/x.safetensors") as stream:
        stream.write(b"ab")
        stream.write(memoryview(b"cd"))
    assert storage.read("a/x.safetensors") == b"abcd"


def test_files_and_folders_go_and_come(storage, tmp_path):
    source = tmp_path / "source"
    (source / "in").mkdir(parents=True)
    (source / "a").write_bytes(b"A")
    (source / "in" / "b").write_bytes(b"B")
    storage.put(source / "in", "flat")
    storage.put(source, "deep/model")
    storage.put(source / "a", "deep/file")
    scratch = tmp_path / "scratch"
    folder = storage.fetch("deep/model", scratch)
    assert (folder / "a").read_bytes() == b"A" and (folder / "in" / "b").read_bytes() == b"B"
    assert (storage.fetch("flat", scratch) / "b").read_bytes() == b"B"
    assert storage.fetch("deep/file", scratch).read_bytes() == b"A"
    assert sorted(p.name for p in folder.iterdir()) == ["a", "in"]


def test_putting_a_local_file_where_it_is_does_nothing(tmp_path):
    storage = Storage(str(tmp_path))
    storage.write("patch", b"bits")
    storage.put(tmp_path / "patch", "patch")
    assert storage.read("patch") == b"bits"


def test_fetching_what_is_not_there_fails_and_leaves_nothing(storage, tmp_path):
    if storage.local is not None:
        assert not storage.fetch("none", tmp_path).exists()
        return
    with pytest.raises(OSError, match="none"):
        storage.fetch("none", tmp_path / "scratch")
    storage.write("none", b"there now")
    assert storage.fetch("none", tmp_path / "scratch").read_bytes() == b"there now"


def test_a_local_file_is_whole_or_as_it_was(tmp_path):
    storage = Storage(str(tmp_path))
    storage.write("a", b"old")
    with pytest.raises(TypeError):
        storage.write("a", "not bytes")  # type: ignore[arg-type]
    assert storage.read("a") == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_relative_folder_is_the_same_for_a_process_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    storage = Storage("runs")
    assert storage.uri == str(tmp_path / "runs") and storage.local == tmp_path / "runs"
    assert storage.below("one").uri == str(tmp_path / "runs" / "one")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Storage("~/runs").local == tmp_path / "runs"


def test_a_file_uri_is_a_local_folder(tmp_path):
    storage = Storage(f"file://{tmp_path}").below("one")
    storage.make()
    storage.write("a", b"1")
    assert storage.local == tmp_path / "one" and (tmp_path / "one" / "a").read_bytes() == b"1"


def test_below_keeps_what_a_uri_asks_of_its_storage():
    storage = Storage("s3://bucket/runs/?region=eu-west-1&scheme=http&endpoint_override=localhost%3A9").below("one")
    assert storage.root == "bucket/runs/one" and storage.local is None
    assert storage.system.region == "eu-west-1"
    assert Storage(storage.uri).root == "bucket/runs/one"


@pytest.mark.parametrize("uri", ["nosuch://bucket/runs", "://x"])
def test_a_uri_that_nothing_opens_is_refused(uri):
    with pytest.raises(InputError, match=r"run\.dir"):
        Storage(uri)


def test_the_mock_file_system_works_too():
    storage = Storage("mock:///runs/one")
    assert isinstance(storage.system, fs.FileSystem) and storage.local is None
    storage.make("checkpoints")
    storage.write("checkpoints/a.json", json.dumps([1]).encode())
    storage.append("lines", "x")
    assert storage.read_json("checkpoints/a.json") == [1] and storage.read("lines") == b"x\n"
    assert storage.folders("") == ["checkpoints"] and Path(storage.path("lines")).name == "lines"
