"""Sizes on a 7B shape, memory, and what the package needs to be imported."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dft_cluster.patch import make

ELEMENTS_7B = 6_738_415_616
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def matrix(tmp_path_factory):
    folder = tmp_path_factory.mktemp("matrix")
    tensor = torch.randn(4096, 1024, generator=torch.Generator().manual_seed(0)).bfloat16()
    save_file({"layers.0.mlp.up_proj.weight": tensor}, folder / "model.safetensors")
    return folder, tensor


@pytest.mark.parametrize(("share", "limit"), [(0.01, 0.5e9), (0.05, 2.3e9), (1.0, 2.02 * 2 * ELEMENTS_7B)])
def test_bytes_of_a_7b_shape(matrix, tmp_path, share, limit):
    """Bytes per element of a matrix whose changes are spread evenly (the dearest for gaps), times 7B."""
    base, tensor = matrix
    changed = tensor.view(torch.int16).clone()
    changed[torch.rand(tensor.shape, generator=torch.Generator().manual_seed(1)) < share] ^= 1
    made = make(base, lambda _: changed.view(torch.bfloat16), tmp_path / "patch", {"method": "dft"})
    assert made.changed == pytest.approx(share * made.elements, rel=0.01)
    assert made.size / made.elements * ELEMENTS_7B <= limit


MEASURE = """
import resource, sys
from dft_cluster.patch import apply, diff, fingerprint, revert
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
base, other, work = sys.argv[1:]
fingerprint(base)
before = peak()
diff(base, other, work + "/patch")
made = peak()
apply(work + "/patch", base, work + "/patched")
revert(work + "/patch", work + "/patched", work + "/reverted")
print(made - before, peak() - before)
"""


def test_memory_is_that_of_a_tensor_and_its_part(tmp_path):
    """Six tensors of 32 MiB, a tenth of each changed: never the 192 MiB of the model."""
    for name in ("base", "other"):
        (tmp_path / name).mkdir()
    draw = torch.Generator().manual_seed(0)
    size = 16 << 20
    tensors = {f"layers.{i}.w": torch.randn(size, generator=draw).bfloat16() for i in range(6)}
    save_file(tensors, tmp_path / "base" / "model.safetensors")
    for tensor in tensors.values():
        tensor[::10] += 1
    save_file(tensors, tmp_path / "other" / "model.safetensors")
    ended = subprocess.run(
        [sys.executable, "-c", MEASURE, tmp_path / "base", tmp_path / "other", tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    making, everything = map(int, ended.stdout.split())
    tensor, part = 2 * size, (1 + 2 + 2) * size // 10
    assert making < tensor + part + (32 << 20)
    assert everything < tensor + part + (32 << 20)


def test_it_needs_torch_alone():
    code = "import sys, dft_cluster.patch, dft_cluster.__main__; print(*{n.split('.')[0] for n in sys.modules})"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(ended.stdout.split())
    assert "torch" in loaded
    assert not loaded & {
        "ray",
        "deepspeed",
        "transformers",
        "pydantic",
        "datasets",
        "accelerate",
        "peft",
        "wandb",
    }
