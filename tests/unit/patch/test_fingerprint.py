import struct
from hashlib import sha256

import pytest
import torch

from dft_cluster.patch import fingerprint


def test_files_and_order_do_not_matter(save, tensors):
    backwards = dict(reversed(tensors.items()))
    found = {fingerprint(save(f"model{n}", some, n)) for n, some in ((1, tensors), (2, tensors), (5, backwards))}
    assert len(found) == 1


def test_its_definition(save):
    folder = save("model", {"b": torch.tensor(1.0).bfloat16(), "a": torch.arange(6).float().reshape(2, 3)})
    a = sha256(sha256(struct.pack("<6f", *range(6))).digest()).hexdigest()
    b = sha256(sha256(b"\x80\x3f").digest()).hexdigest()
    lines = f'["a", "F32", [2, 3], "{a}"]\n["b", "BF16", [], "{b}"]\n'
    assert fingerprint(folder) == sha256(lines.encode()).hexdigest()


@pytest.mark.parametrize("change", ["name", "shape", "dtype", "bit", "last block", "missing"])
def test_whatever_differs_shows(save, tensors, change):
    other = {name: tensor.clone() for name, tensor in tensors.items()}
    norm, embed = "model.norm.weight", "model.embed_tokens.weight"
    if change == "name":
        other["model.norm2.weight"] = other.pop(norm)
    elif change == "shape":
        other[embed] = other[embed].reshape(16, 64)
    elif change == "dtype":
        other[embed] = other[embed].view(torch.float16)
    elif change == "bit":
        other[embed].view(torch.int16)[63, 15] ^= 1
    elif change == "last block":
        other["model.layers.0.mlp.up_proj.weight"].view(torch.int16)[-1, -1] ^= 1
    else:
        del other[norm]
    assert fingerprint(save("base", tensors)) != fingerprint(save("other", other))


def test_zero_and_minus_zero_are_two_things(save):
    plus, minus = torch.zeros(3), -torch.zeros(3)
    assert torch.equal(plus, minus)
    assert fingerprint(save("plus", {"a": plus})) != fingerprint(save("minus", {"a": minus}))
