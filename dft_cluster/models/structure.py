"""What a causal language model is made of, read from its structure: parameters, saved names, layers and kinds."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import nn

from dft_cluster.errors import InputError
from dft_cluster.patch.folder import Folder

_BLOCK = 1 << 22

Kind = Literal["mlp", "attention", "norm", "embedding", "head", "other"]


@dataclass(frozen=True)
class Parameter:
    """One weight that is updated (tied weights are one), and where its file keeps it."""

    index: int
    name: str
    saved: str
    shape: tuple[int, ...]
    numel: int
    layer: int | None
    kind: Kind
    copies: tuple[str, ...] = ()
    """Further tensors of the files that hold the same weight: tied weights that were saved twice."""


def read_config(folder: Path, trust_remote_code: bool = False) -> Any:
    """The model's config, refused where it is no causal language model."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # what is wrong in it may fail in any way
        raise InputError(
            f"model.name: {folder} has no config that transformers can read ({type(error).__name__}: {error})"
        ) from error
    known = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    remote = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    named = list(getattr(config, "architectures", None) or [])
    if not (known or (remote and trust_remote_code)) or (
        named and not any(re.search("CausalLM|LMHead", n) for n in named)
    ):
        raise InputError(
            f"model.name: {folder} is not a causal language model (model_type {config.model_type!r}, "
            f"architectures {named}); right would be one that AutoModelForCausalLM loads"
        )
    return config


def window(folder: Path, trust_remote_code: bool = False) -> int | None:
    """The tokens that a model was made for; None where its config bounds them by nothing (ALiBi)."""
    text = read_config(folder, trust_remote_code).get_text_config()
    return getattr(text, "max_position_embeddings", None)


def skeleton(folder: Path, trust_remote_code: bool = False) -> nn.Module:
    """The model without its weights: shapes on the meta device, which cost no memory."""
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    config = read_config(folder, trust_remote_code)
    try:
        with init_empty_weights():
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
        model.tie_weights()
    except Exception as error:  # the same
        raise InputError(f"model.name: no model of {folder}'s config ({type(error).__name__}: {error})") from error
    return model


def parameters(folder: Path, trust_remote_code: bool = False) -> list[Parameter]:
    """Every parameter in the model's order, with its saved name.

    A model whose files hold other tensors than its modules (fused experts, quantized weights) is refused: a
    patch of such a model could not be applied tensor by tensor.
    """
    model = skeleton(folder, trust_remote_code)
    files = Folder(folder)
    whole, converted = _saved_names(model, files)
    owners = _owners(model)
    found: list[Parameter] = []
    problems: list[str] = []
    for index, (name, weight) in enumerate(model.named_parameters()):
        names = [whole[n] for n in owners[id(weight)] if n in whole]
        if not names:
            made = converted.get(name)
            problems.append(
                f"{name} {tuple(weight.shape)} is {f'made out of {made} and others' if made else 'in no file'}"
            )
            continue
        saved, *copies = names
        if (odd := next((c for c in copies if not _same(files, saved, c)), None)) is not None:
            problems.append(f"{name} is tied, but its copies {saved} and {odd} in the files differ")
        elif tuple(files.shape(saved)) != tuple(weight.shape):
            problems.append(f"{name} is {tuple(weight.shape)} in the model and {tuple(files.shape(saved))} in the file")
        elif not files.dtype(saved).is_floating_point or files.dtype(saved).itemsize not in (2, 4):
            problems.append(f"{name} is stored as {files.dtype(saved)}")
        else:
            layer, kind = _place(model, name, weight)
            found.append(Parameter(index, name, saved, tuple(weight.shape), weight.numel(), layer, kind, tuple(copies)))
    if problems:
        raise InputError(
            f"model.name: the saved tensors of {folder} do not map one to one onto the loaded parameters, so no patch "
            f"could be made: {'; '.join(problems[:3])}{f' and {len(problems) - 3} more' if len(problems) > 3 else ''}. "
            "Right would be a model stored as fp32, fp16 or bf16 with one tensor per parameter"
        )
    return found


def adaptable(
    folder: Path, weights: Sequence[Parameter], kinds: Sequence[str], trust_remote_code: bool = False
) -> list[Parameter]:
    """Those of the weights beside which an adapter can lie: linear maps of the layers' attention and MLP."""
    from transformers.pytorch_utils import Conv1D

    model = skeleton(folder, trust_remote_code)
    found = [
        p
        for p in weights
        if p.layer is not None
        and p.kind in kinds
        and p.name.endswith(".weight")
        and isinstance(_owner(model, p.name), nn.Linear | Conv1D)
    ]
    if not found:
        there = sorted({f"{type(_owner(model, p.name)).__name__} ({p.kind})" for p in weights if p.layer is not None})
        raise InputError(
            f"train.adapter: lora matches no module: looked for nn.Linear and Conv1D of {', '.join(kinds)} (lora.kinds) in the "
            f"layers, and the weights there belong to {', '.join(there) or 'none'}"
        )
    shared = {names[0]: names for names in _owners(model).values() if len(names) > 1}
    if (odd := next((p.name for p in found if p.name in shared), None)) is not None:
        raise InputError(
            f"train.adapter: lora cannot be merged into {odd}, which is the same weight as {', '.join(shared[odd][1:])}: an "
            "adapter lies beside one of them alone. Right would be train.adapter=none, or other lora.kinds"
        )
    return found


def _owners(model: nn.Module) -> dict[int, list[str]]:
    """All names of each weight: tied ones have several, and a file may use any."""
    names: dict[int, list[str]] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(weight), []).append(name)
    return names


def _saved_names(model: Any, files: Folder) -> tuple[dict[str, str], dict[str, str]]:
    """Which saved tensor each parameter is, by the rules that transformers loads with (a prefix left out, a renamed
    head); and apart from these, one saved tensor of each parameter that is put together or rearranged in loading."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    state = model.state_dict()
    whole: dict[str, str] = {}
    converted: dict[str, str] = {}
    for saved in files.names:
        name, conversion = rename_source_key(saved, renamings, converters, model.base_model_prefix, state)
        if name not in state and saved in state:
            name, conversion = saved, None
        (whole if conversion is None else converted).setdefault(name, saved)
    return whole, converted


def _same(files: Folder, one: str, other: str) -> bool:
    """Whether two saved tensors are alike to the bit."""
    here, there = files.entry(one), files.entry(other)
    return (here.dtype, here.shape) == (there.dtype, there.shape) and all(
        np.array_equal(
            files.bits(one, at, min(at + _BLOCK, here.numel)), files.bits(other, at, min(at + _BLOCK, here.numel))
        )
        for at in range(0, here.numel, _BLOCK)
    )


def _place(model: Any, name: str, weight: nn.Parameter) -> tuple[int | None, Kind]:
    """Layer number and kind. A layer is an item of the longest list of blocks that lies in no other list."""
    match = re.match(rf"{re.escape(_blocks(model))}\.(\d+)\.(.+)", name)
    layer = int(match[1]) if match else None
    if weight.ndim == 1 and not name.endswith("bias"):
        return layer, "norm"
    if match:
        norm = re.search(r"norm|ln_", match[2].split(".")[0]) and weight.ndim == 1
        return layer, "norm" if norm else "attention" if re.search(r"attn|attention", match[2]) else "mlp"
    if model.get_input_embeddings() is not None and weight is model.get_input_embeddings().weight:
        return None, "embedding"
    head = model.get_output_embeddings()
    if head is not None and any(weight is w for w in head.parameters()):
        return None, "head"
    return None, "norm" if weight.ndim == 1 else "embedding" if isinstance(
        _owner(model, name), nn.Embedding
    ) else "other"


def _owner(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(name.rpartition(".")[0])


def _blocks(model: nn.Module) -> str:
    lists = {n: len(m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList)}
    outer = [n for n in lists if not any(n.startswith(f"{other}.") for other in lists)]
    return max(outer, key=lambda n: (lists[n], -len(n))) if outer else "\0"
