"""Where a model's MLPs write: the down-projection of every block, found by shapes and never by a family's name."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from dft_cluster.errors import InputError
from dft_cluster.models.structure import _blocks


@dataclass(frozen=True)
class DownProjection:
    """The last linear map of a block's MLP: `inner` numbers in, `hidden` out.

    `stored_in_out` tells how the weight lies: [inner, hidden] (a Conv1D, as in GPT-2) instead of [hidden, inner].
    """

    layer: int
    name: str
    inner: int
    hidden: int
    stored_in_out: bool

    @property
    def weight(self) -> str:
        return f"{self.name}.weight"


@dataclass(frozen=True)
class _Linear:
    name: str
    taken: int
    given: int
    stored_in_out: bool

    @property
    def parent(self) -> str:
        return _parent(self.name)


def block_names(model: nn.Module) -> list[str]:
    """The model's blocks in order, by module name."""
    blocks = _blocks(model)
    return [f"{blocks}.{i}" for i in range(len(model.get_submodule(blocks)))] if blocks != "\0" else []  # type: ignore[arg-type]


def down_projections(model: Any) -> list[DownProjection]:
    """One for every block.

    Looked for, in each block and outside of its attention: one module that holds a linear map from the hidden size to
    an inner size (to twice that where gate and up are fused), and after it one from that inner size back. A module that
    holds a convolution as well (Mamba's) mixes tokens and is no MLP.
    """
    blocks = block_names(model)
    if not blocks:
        raise InputError("model.name: no MLP was found: the model has no list of blocks (an nn.ModuleList) to look in")
    config = model.config.get_text_config()
    hidden = getattr(config, "hidden_size", None)
    if not isinstance(hidden, int):
        raise InputError(
            f"model.name: no MLP can be told by its shapes: {type(config).__name__} has no hidden_size (it is {hidden}). Right "
            "would be a configuration with one, under this name or by an attribute_map"
        )
    return [_in_block(model, name, layer, hidden) for layer, name in enumerate(blocks)]


def _in_block(model: Any, block: str, layer: int, hidden: int) -> DownProjection:
    inside = model.get_submodule(block)
    convolutions = {name for name, module in inside.named_modules() if isinstance(module, nn.Conv1d)}
    mixing = {_parent(name) for name in convolutions}
    maps = list(_linear_maps(inside))
    stacked = [
        name
        for name, weight in inside.named_parameters()
        if weight.ndim == 3 and not _attends(name) and _parent(name) not in convolutions
    ]
    found: dict[str, _Linear] = {}
    for one in maps:
        up = {m.given for m in maps if m.parent == one.parent and m.taken == hidden and m is not one}
        if one.parent not in mixing and one.given == hidden and up & {one.taken, 2 * one.taken}:
            found[one.parent] = one  # the last one: where inner and hidden size are equal, up looks like down
    if len(found) == 1 and not stacked:
        [down] = found.values()
        return DownProjection(layer, f"{block}.{down.name}", down.taken, hidden, down.stored_in_out)
    seen = ", ".join(f"{m.name} {m.taken}→{m.given}" for m in maps) or "no linear map"
    several = [*found, *stacked]
    problem = f"{len(several)} of them, {', '.join(several[:3])} (a mixture of experts?)" if several else "none"
    raise InputError(
        f"model.name: editing an MLP (rome, memit, ft_c with layers) needs one in each block, and {block} has {problem}; looked "
        "for, outside of attention and of modules that convolve: a module with a linear map from the hidden size "
        f"{hidden} to an inner size, and after it one from there to {hidden}. "
        f"The block has {seen}"
    )


def _linear_maps(block: nn.Module) -> Iterator[_Linear]:
    from transformers.pytorch_utils import Conv1D

    for name, module in block.named_modules():
        if _attends(name):
            continue
        if isinstance(module, nn.Linear):
            yield _Linear(name, module.weight.shape[1], module.weight.shape[0], False)
        elif isinstance(module, Conv1D):
            yield _Linear(name, module.weight.shape[0], module.weight.shape[1], True)


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _attends(name: str) -> bool:
    return re.search(r"attn|attention", name) is not None
