"""Whatever happens to a patch or around it: a clear refusal, nothing half-written, never a wrong model."""

import hashlib
import json
import random
import resource
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
import torch

from dft_cluster.__main__ import main
from dft_cluster.errors import InputError
from dft_cluster.patch import Patch, apply, compose, diff, fingerprint, inspect, patched, revert, verify
from dft_cluster.patch.plot import plot

UNSEALED = b"0" * 64


@pytest.fixture
def small(save, tmp_path):
    """A base of a few tensors, a patch that uses every encoding, its content and its true result."""
    draw = torch.Generator().manual_seed(2)
    old = {
        "gaps": torch.randn(300, generator=draw).bfloat16(),
        "sparse": torch.randn(1500, generator=draw).half(),
        "bitmap": torch.randn(40, generator=draw),
        "dense": torch.randn(9, generator=draw).bfloat16(),
        "same": torch.randn(5, generator=draw),
    }
    new = {name: tensor.clone() for name, tensor in old.items()}
    new["gaps"][::30] += 1
    new["sparse"][[2, 1400]] += 1
    new["bitmap"][::2] += 1
    new["dense"] += 1
    base = save("base", old)
    made = diff(base, save("other", new), tmp_path / "patch")
    with Patch(made.path) as patch:
        kinds = {int(kind) for part in patch.parts.values() for kind in part.kinds}
    assert kinds == {1, 2, 3, 4}
    return base, made.path, made.path.read_bytes(), made.result_fingerprint


def header_end(content: bytes) -> int:
    return 8 + int.from_bytes(content[:8], "little")


def sealed(content: bytes) -> bytes:
    """The content with a checksum that fits it: what a hostile writer would make."""
    end = header_end(content)
    stated = json.loads(content[8:end])["__metadata__"]["checksum"].encode()
    unsealed = content[:end].replace(stated, UNSEALED)
    pieces = b"".join(hashlib.sha256(content[i : i + (4 << 20)]).digest() for i in range(end, len(content), 4 << 20))
    checksum = hashlib.sha256(unsealed + pieces).hexdigest().encode()
    return content[:end].replace(stated, checksum) + content[end:]


def refused(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        Patch(path).close()
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_truncation_at_every_percent(small, tmp_path):
    _, _, content, _ = small
    for percent in range(100):
        refused(tmp_path / "cut", content[: len(content) * percent // 100])
    refused(tmp_path / "cut", content[:-1])
    refused(tmp_path / "cut", content + b"\0")


def test_a_flipped_byte_anywhere(small, tmp_path):
    """Every byte of the header's length and of the data, and every third of the header."""
    _, _, content, _ = small
    end = header_end(content)
    for place in [*range(8), *range(8, end, 3), *range(end, len(content))]:
        flipped = bytearray(content)
        flipped[place] ^= 1 << (place % 8)
        refused(tmp_path / "flipped", bytes(flipped))


def mutated(content: bytes, draw: random.Random) -> bytes:
    """Bytes set, runs cut out, doubled or exchanged."""
    changed = bytearray(content)
    for _ in range(draw.choice([1, 1, 2, 5])):
        start = draw.randrange(len(changed))
        stop = min(len(changed), start + draw.choice([1, 2, 8, 64]))
        how = draw.randrange(4)
        if how == 0:
            changed[start:stop] = draw.randbytes(stop - start)
        elif how == 1:
            del changed[start:stop]
        elif how == 2:
            changed[start:start] = changed[start:stop]
        else:
            changed[start:stop] = bytes([draw.choice([0, 1, 0x7F, 0x80, 0xFF])]) * (stop - start)
    return bytes(changed)


def test_thousands_of_mutations(small, tmp_path):
    _, _, content, _ = small
    draw = random.Random(0)
    tracemalloc.start()
    for _ in range(3000):
        changed = mutated(content, draw)
        if changed != content:
            refused(tmp_path / "mutated", changed)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 << 20


def test_mutations_with_a_fitting_checksum(small, tmp_path):
    """Past the checksum: either refused, or (in what does not touch the new bits) still the true result."""
    base, _, content, result = small
    draw = random.Random(1)
    end = header_end(content)
    applied = 0
    tracemalloc.start()
    for number in range(400):
        data = mutated(content[end:], draw)
        changed = content[:end] + data[: len(content) - end].ljust(len(content) - end, b"\xff")
        path, out = tmp_path / "hostile", tmp_path / f"out{number}"
        path.write_bytes(sealed(changed))
        try:
            assert apply(path, base, out) == fingerprint(out) == result
            applied += 1
        except InputError:
            assert not out.exists()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 << 20
    assert 0 < applied < 400
    assert not list(tmp_path.glob("*.partial"))


def with_metadata(content: bytes, key: str, value: str) -> bytes:
    end = header_end(content)
    header = json.loads(content[8:end])
    header["__metadata__"][key] = value
    text = json.dumps(header).encode()
    return sealed(len(text).to_bytes(8, "little") + text + content[end:])


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("format_version", "2", "format version '2'; this program reads version 1"),
        ("base_fingerprint", "0" * 63 + "1", "contradicts itself"),
        ("result_fingerprint", "", "contradicts itself"),
        ("tensors", "{", "list of tensors is broken"),
        ("tensors", "{}", "contradicts itself"),
        ("tensors", '{"gaps": ["BF16", [1e9], "", "", 0]}', "list of tensors is broken"),
        ("tensors", '{"gaps": ["BF16", [-3], "", "", 0]}', "list of tensors is broken"),
        ("tensors", "[" * 100_000, "list of tensors is broken"),
        ("below", "{}3", "not a list of patches"),
        ("old_bits", "false", "holds tensors"),
    ],
)
def test_metadata_that_lie(small, tmp_path, key, value, complaint):
    _, _, content, _ = small
    assert complaint in refused(tmp_path / "lying", with_metadata(content, key, value))


def test_a_result_that_is_not_what_it_gives(small, tmp_path):
    base, path, content, _ = small
    stated = inspect(path).result_fingerprint
    with Patch(path) as patch:
        digest = patch.records["dense"].result
        records = {n: (r.dtype, r.shape, r.result) for n, r in patch.records.items()}
    records["dense"] = (*records["dense"][:2], "1" * 64)
    lines = "".join(json.dumps([n, *r[:1], list(r[1]), r[2]]) + "\n" for n, r in sorted(records.items()))
    lying = content.replace(digest.encode(), b"1" * 64)
    lying = sealed(lying.replace(stated.encode(), hashlib.sha256(lines.encode()).hexdigest().encode()))
    (tmp_path / "lying").write_bytes(lying)
    with pytest.raises(InputError, match="does not give what it says for dense"):
        apply(tmp_path / "lying", base, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_files_that_are_no_patch(small, tmp_path):
    base, _, _, _ = small
    with pytest.raises(InputError, match="no knowledge patch"):
        Patch(base / "model-0.safetensors")
    with pytest.raises(InputError, match="cannot be opened"):
        Patch(tmp_path / "missing")
    with pytest.raises(InputError, match="cannot be opened"):
        Patch(tmp_path)


def test_another_base_is_refused_with_both_fingerprints(small, save, tmp_path):
    base, path, _, _ = small
    tensors = {"gaps": torch.zeros(300).bfloat16(), "same": torch.zeros(5)}
    other = save("another", tensors)
    for function in (apply, revert):
        with pytest.raises(InputError) as caught:
            function(path, other, tmp_path / "out")
        assert fingerprint(other) in str(caught.value)
        expected = fingerprint(base) if function is apply else inspect(path).result_fingerprint
        assert expected in str(caught.value)
        assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob("*.partial"))


def test_one_bit_in_an_untouched_tensor_makes_another_base(small, tmp_path):
    base, path, _, _ = small
    file = base / "model-0.safetensors"
    content = bytearray(file.read_bytes())
    entry = json.loads(content[8 : header_end(content)])["same"]["data_offsets"]
    content[header_end(content) + entry[0]] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match="first tensor that differs is same"):
        apply(path, base, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("where", ["missing", "empty"])
def test_folders_without_weights(small, tmp_path, where):
    base, path, _, _ = small
    folder = tmp_path / where
    if where == "empty":
        folder.mkdir()
    for call in (
        lambda: apply(path, folder, tmp_path / "out"),
        lambda: revert(path, folder, tmp_path / "out"),
        lambda: verify(path, folder),
        lambda: diff(base, folder, tmp_path / "out"),
        lambda: diff(folder, base, tmp_path / "out"),
        lambda: fingerprint(folder),
        lambda: compose([path, path], tmp_path / "out", base=folder),
    ):
        with pytest.raises(InputError, match=str(folder)):
            call()
    assert not (tmp_path / "out").exists()


def test_a_model_is_untouched_by_a_patch_that_breaks_off(small, tmp_path):
    """The last tensor's places are nonsense: the first ones are in the model by then, and come out again."""
    _, _, content, _ = small
    end = header_end(content)
    start, stop = json.loads(content[8:end])["sparse:index"]["data_offsets"]
    hostile = content[: end + start] + b"\xff" * (stop - start) + content[end + stop :]
    (tmp_path / "hostile").write_bytes(sealed(hostile))
    model = torch.nn.Module()
    draw = torch.Generator().manual_seed(2)
    for name, size, dtype in (
        ("gaps", 300, torch.bfloat16),
        ("sparse", 1500, torch.float16),
        ("bitmap", 40, torch.float32),
        ("dense", 9, torch.bfloat16),
        ("same", 5, torch.float32),
    ):
        model.register_buffer(name, torch.randn(size, generator=draw).to(dtype))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(InputError, match="damaged"), patched(model, tmp_path / "hostile"):
        pass
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_nothing_that_is_read_is_written_over(small, save, edit, tmp_path):
    base, made, content, _ = small
    other = tmp_path / "other"
    weights = {file: file.read_bytes() for folder in (base, other) for file in folder.glob("*.safetensors")}
    second = edit(base, "second.safetensors")
    for work in (
        lambda: diff(base, other, base / "model-0.safetensors"), lambda: diff(base, other, other / "patch.safetensors"),
        lambda: compose([made, second], made, rule="last"), lambda: compose([made, second], base / "p", rule="last", base=base),
        lambda: plot(inspect(made), made),
    ):  # fmt: skip
        with pytest.raises(InputError, match="which is only read"):
            work()
    assert made.read_bytes() == content
    assert {file: file.read_bytes() for folder in (base, other) for file in folder.glob("*.safetensors")} == weights


def test_no_space_left(save, tensors, edit, tmp_path):
    """A limit on file sizes ends a write just as a full disk does, also without rights to mount one."""
    base = save("base", tensors)
    edit(base, "patch", share=0.9)
    other = save("other", {name: tensor.flip(0) if tensor.dim() else tensor for name, tensor in tensors.items()})
    before = sorted(path.name for path in tmp_path.iterdir())
    for words in (
        ["apply", "patch", "--model", "base", "--out", "out"],
        ["diff", str(base), str(other), "--out", "out"],
        ["compose", "patch", "patch", "--out", "out"],
    ):
        ended = subprocess.run(
            [sys.executable, "-m", "dft_cluster", "patch", *words],
            cwd=tmp_path,
            env={"PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"},
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)),
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 2, ended.stderr
        assert "out could not be written, and nothing of it stays" in ended.stderr
        assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("word", ["apply", "revert", "verify", "inspect", "compose"])
def test_every_command_ends_with_2(small, tmp_path, capsys, word):
    base, path, content, _ = small
    path.write_bytes(content[:-1])
    rest = {
        "inspect": [],
        "verify": ["--model", str(base)],
        "compose": [str(path), "--out", str(tmp_path / "out")],
    }.get(word, ["--model", str(base), "--out", str(tmp_path / "out")])
    assert main(["patch", word, str(path), *rest]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.out == ""


def test_the_commands(small, tmp_path, capsys):
    base, path, _, result = small
    patched_folder, reverted = str(tmp_path / "p"), str(tmp_path / "r")
    assert main(["patch", "apply", str(path), "--model", str(base), "--out", patched_folder]) == 0
    assert result in capsys.readouterr().out
    assert main(["patch", "verify", str(path), "--model", patched_folder]) == 0
    assert "is patched" in capsys.readouterr().out
    assert main(["patch", "revert", str(path), "--model", patched_folder, "--out", reverted]) == 0
    assert main(["patch", "verify", str(path), "--model", reverted]) == 0
    assert "is base" in capsys.readouterr().out
    small_patch = str(tmp_path / "small")
    assert main(["patch", "diff", str(base), patched_folder, "--out", small_patch, "--no-old-bits"]) == 0
    assert Path(small_patch).stat().st_size < path.stat().st_size
    assert (
        main(
            [
                "patch",
                "compose",
                str(path),
                small_patch,
                "--out",
                str(tmp_path / "both"),
                "--model",
                str(base),
            ]
        )
        == 0
    )
    assert main(["patch", "verify", str(path), "--model", str(tmp_path / "other")]) == 0
    (tmp_path / "other" / "model-0.safetensors").unlink()
    assert main(["patch", "verify", str(path), "--model", str(tmp_path / "other")]) == 2
