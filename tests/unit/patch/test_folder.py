import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dft_cluster.errors import InputError
from dft_cluster.patch import Folder


def test_reads_what_safetensors_wrote(save, tensors):
    folder = Folder(save("base", tensors, files=3))
    assert folder.names == sorted(tensors)
    for name, tensor in tensors.items():
        assert folder.dtype(name) == tensor.dtype
        assert folder.shape(name) == tuple(tensor.shape)
        assert torch.equal(folder.tensor(name), tensor)


def test_what_an_earlier_save_left_beside_the_weights_does_not_count(save, tensors):
    """As transformers reads it: `model.safetensors` first, whatever else lies there."""
    folder = save("base", tensors, files=2)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"model.norm.weight": "gone.safetensors"}})
    )
    save_file({"model.norm.weight": torch.zeros(16)}, folder / "model.safetensors")
    read = Folder(folder)
    assert read.names == ["model.norm.weight"]
    assert torch.equal(read.tensor("model.norm.weight"), torch.zeros(16))


@pytest.mark.parametrize("span", [(0, 0), (0, 1), (999, 1_048_577), (1_048_576, 1_048_576), (1_099_999, 1_100_000)])
def test_flat_slices(save, tensors, span):
    name = "model.layers.0.mlp.up_proj.weight"
    part = Folder(save("base", tensors)).flat(name, *span)
    assert torch.equal(part, tensors[name].flatten()[slice(*span)])


@pytest.mark.parametrize("span", [(-1, 2), (3, 2), (0, 1025)])
def test_a_slice_outside_the_tensor_is_refused(save, tensors, span):
    with pytest.raises(InputError, match="has 1024 elements"):
        Folder(save("base", tensors)).flat("model.embed_tokens.weight", *span)


def test_every_dtype_keeps_its_bits(tmp_path):
    pattern = torch.arange(256, dtype=torch.uint8)
    dtypes = (
        torch.float8_e4m3fn,
        torch.float8_e5m2,
        torch.bfloat16,
        torch.float16,
        torch.complex64,
        torch.int64,
    )
    written = {str(dtype): pattern.clone().view(dtype) for dtype in dtypes}
    save_file(written, tmp_path / "model.safetensors")
    folder = Folder(tmp_path)
    for name, tensor in written.items():
        assert folder.dtype(name) == tensor.dtype
        assert torch.equal(folder.tensor(name).view(torch.uint8), pattern)


def test_an_index_names_the_files_that_count(save, tensors):
    base = save("base", tensors, files=2)
    save_file({"consolidated": torch.ones(3)}, base / "consolidated.safetensors")
    names = {name: f"model-{i}.safetensors" for i in range(2) for name in list(tensors)[i::2]}
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert Folder(base).names == sorted(tensors)


@pytest.mark.parametrize("weight_map", [{"a": "../other.safetensors"}, {"a": "missing.safetensors"}, {"a": 3}, {}, [1]])
def test_an_index_that_leads_nowhere(save, tensors, weight_map):
    base = save("base", tensors)
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(InputError, match=r"index\.json"):
        Folder(base)


def test_a_folder_without_weights(tmp_path):
    with pytest.raises(InputError, match=r"no \*\.safetensors"):
        Folder(tmp_path)
    with pytest.raises(InputError, match="not a folder"):
        Folder(tmp_path / "nowhere")


def test_a_name_in_two_files(save, tensors):
    base = save("base", tensors)
    save_file({"model.norm.weight": torch.ones(3)}, base / "second.safetensors")
    with pytest.raises(InputError, match=r"model\.norm\.weight.*both"):
        Folder(base)


def _file(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x01",
        (2**63).to_bytes(8, "little") + b"{}",
        _file(b"not json"),
        _file(b"[" * 100_000),
        _file([]),
        _file({"a": 3}),
        _file({"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}, b"\0"),
        _file({"a": {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]}}, b"\0" * 4),
        _file({"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, b"\0" * 4),
        _file({"a": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 4]}}, b"\0" * 4),
        _file({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 5),
        _file({"a": {"dtype": "F32", "shape": [1], "data_offsets": [1, 5]}}, b"\0" * 5),
        _file(
            b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'
        ),
    ],
)
def test_a_broken_weight_file(tmp_path: Path, content: bytes):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"model\.safetensors"):
        Folder(tmp_path)


def test_bits_are_unsigned_integers(save, tensors):
    bits = Folder(save("base", tensors)).bits("model.embed_tokens.weight", 0, 8)
    assert bits.dtype == np.uint16
    assert np.array_equal(bits.view(np.int16), tensors["model.embed_tokens.weight"].flatten()[:8].view(torch.int16))
