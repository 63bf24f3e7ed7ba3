from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dft_cluster.patch import Folder, make

Tensors = dict[str, torch.Tensor]


def small_tensors() -> Tensors:
    """Names like a language model's, several dtypes, a scalar, an empty tensor and one of several blocks."""
    draw = torch.Generator().manual_seed(0)
    return {
        "model.embed_tokens.weight": torch.randn(64, 16, generator=draw).bfloat16(),
        "model.layers.0.self_attn.q_proj.weight": torch.randn(16, 16, generator=draw).half(),
        "model.layers.0.mlp.up_proj.weight": torch.randn(1100, 1000, generator=draw).bfloat16(),
        "model.layers.1.self_attn.q_proj.weight": torch.randn(33, 7, generator=draw),
        "model.layers.1.mlp.experts.3.up_proj.weight": torch.randn(5, 5, generator=draw).double(),
        "model.norm.weight": torch.ones(16),
        "extra.empty": torch.empty(0, 4),
        "extra.flags": torch.tensor([True, False, True]),
        "extra.steps": torch.tensor(7),
    }


@pytest.fixture
def tensors() -> Tensors:
    return small_tensors()


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """`save(name, tensors, files)`: a model folder whose tensors are dealt to so many weight files."""

    def write(name: str, tensors: Mapping[str, torch.Tensor], files: int = 1) -> Path:
        folder = tmp_path / name
        (folder / "sub").mkdir(parents=True)
        (folder / "config.json").write_text('{"model_type": "none"}')
        (folder / "sub" / "notes.txt").write_text("carried along")
        names = list(tensors)
        for number in range(files):
            mine = {tensor: tensors[tensor] for tensor in names[number::files]}
            save_file(mine, folder / f"model-{number}.safetensors", metadata={"format": "pt"})
        return folder

    return write


@pytest.fixture
def edit(tmp_path: Path) -> Callable[..., Path]:
    """`edit(base, name, share, seed, only, old_bits)`: a patch that changes a share of the float elements."""

    def write(
        base: Path,
        name: str,
        share: float = 0.05,
        seed: int = 1,
        only: tuple[str, ...] = (),
        old_bits: bool = True,
    ) -> Path:
        folder, draw = Folder(base), torch.Generator().manual_seed(seed)

        def new(tensor: str) -> torch.Tensor | None:
            if (only and tensor not in only) or not folder.dtype(tensor).is_floating_point:
                return None
            values = folder.tensor(tensor)
            values[torch.rand(values.shape, generator=draw) < share] += seed
            return values

        return make(base, new, tmp_path / name, {"method": "dft", "top": str(share)}, old_bits).path

    return write
