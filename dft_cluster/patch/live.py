"""A patch on a model in memory, for as long as a `with` block lasts."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from dft_cluster.errors import InputError
from dft_cluster.patch.encoding import Places
from dft_cluster.patch.fingerprint import Block, block_digest, blocks, tensor_digest
from dft_cluster.patch.folder import as_bits, as_tensor
from dft_cluster.patch.header import DTYPES
from dft_cluster.patch.parallel import ordered
from dft_cluster.patch.reader import Patch

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, slots=True)
class _Saved:
    """What stood at a block's places before; kept encoded, since the patch's file may be gone at the end."""

    name: str
    block: Block
    places: Places
    values: torch.Tensor


@contextmanager
def patched(
    model: nn.Module,
    patch: Path | str | Patch,
    rename: Callable[[str], str] = str,
    check: bool = True,
) -> Iterator[nn.Module]:
    """The model with the new bits in its weights; on exit what stood at these places is back, bit for bit.

    A tensor of the patch is the parameter or buffer of the same name, or of that which `rename` makes of it.
    With `check` every weight that the base has is compared with the base; without it only the places to be
    changed are, which needs a patch with old bits. Nothing is written before all of this has passed.
    """
    saved: list[_Saved] = []
    try:
        with Patch.opened(patch) as opened:
            flat = _fitting(opened, _weights(model), rename)
            if check:
                _require_base(opened, flat)
            else:
                _require_old_bits(opened, flat)
            for name in _once(opened, flat):
                for block in _touched(opened, name):
                    _put(opened, flat[name], rename(name), block, saved)
        yield model
    finally:
        weights = _weights(model)
        for was in saved:
            flat_now = _flat(weights[was.name])
            flat_now[_indices(was.places, was.block, flat_now.device)] = was.values.to(flat_now.device)


def _weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter and buffer under all of its names, tied ones too."""
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: tensor.data for name, tensor in tensors}


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's own memory as a flat tensor of integers."""
    return tensor.view(-1).view(INTEGERS[tensor.dtype.itemsize])


def _fitting(patch: Patch, weights: dict[str, torch.Tensor], rename: Callable[[str], str]) -> dict[str, torch.Tensor]:
    """The model's tensors that the patch knows, flat; a tensor that it changes must be there just as it says.

    Tensors that it leaves alone may be missing, or lie in the model in another dtype.
    """
    fitting: dict[str, torch.Tensor] = {}
    problems: list[str] = []
    for name, record in patch.records.items():
        tensor, dtype = weights.get(rename(name)), DTYPES[record.dtype]
        if tensor is None:
            if record.changed:
                problems.append(f"it has no {rename(name)}, which the patch changes")
        elif tuple(tensor.shape) != record.shape:
            problems.append(f"{name} has the shape {tuple(tensor.shape)}, not {record.shape}")
        elif tensor.dtype != dtype:
            if record.changed:
                problems.append(f"{name} is {tensor.dtype}, not {dtype}; load the model with dtype={dtype}")
        elif type(tensor) is not torch.Tensor or tensor.is_meta or not tensor.is_contiguous():
            problems.append(f"{name} is not a plain contiguous tensor in memory (sharded, quantized, on meta?)")
        else:
            fitting[name] = _flat(tensor)
    if problems:
        listed = "; ".join(problems[:5]) + ("; …" if len(problems) > 5 else "")
        raise InputError(f"{patch.path} does not fit the model: {listed}")
    return fitting


def _require_base(patch: Patch, flat: dict[str, torch.Tensor]) -> None:
    every = (block for name in flat for block in blocks(name, patch.records[name].numel))
    found: list[bytes] = []
    digests = ordered(lambda b: (b, block_digest(as_bits(flat[b.name][b.start : b.stop]))), every)
    with closing(digests) as results:
        for block, digest in results:
            found.append(digest)
            if block.last:
                if tensor_digest(found) != patch.records[block.name].base:
                    raise _not_the_base(patch, block.name)
                found.clear()


def _require_old_bits(patch: Patch, flat: dict[str, torch.Tensor]) -> None:
    if not patch.has_old_bits:
        raise InputError(f"{patch.path} has no old bits to compare the model with; use check=True")
    for name, part in patch.parts.items():
        for block in _touched(patch, name):
            indices = _indices(patch.places(part, block.number), block, flat[name].device)
            if not np.array_equal(as_bits(flat[name][indices]), patch.old(part, block.number)):
                raise _not_the_base(patch, name)


def _not_the_base(patch: Patch, name: str) -> InputError:
    return InputError(
        f"{patch.path} is for the base {patch.base_fingerprint}, and the model in memory differs in {name}"
    )


def _once(patch: Patch, flat: dict[str, torch.Tensor]) -> list[str]:
    """The changed tensors, those that are tied in the model only under one name."""
    names_at: dict[int, list[str]] = {}
    for name, tensor in flat.items():
        if tensor.numel():
            names_at.setdefault(tensor.data_ptr(), []).append(name)
    for first, *others in names_at.values():
        for other in others:
            if not _same_change(patch, first, other):
                raise InputError(f"{patch.path} changes {first} and {other} differently, but the model ties them")
    return [first for first, *_ in names_at.values() if first in patch.parts]


def _same_change(patch: Patch, first: str, other: str) -> bool:
    one, two = patch.parts.get(first), patch.parts.get(other)
    if one is None or two is None:
        return one is two
    return all(
        np.array_equal(patch.positions(one, block.number), patch.positions(two, block.number))
        and np.array_equal(patch.new(one, block.number), patch.new(two, block.number))
        for block in blocks(first, one.numel)
    )


def _touched(patch: Patch, name: str) -> Iterator[Block]:
    part = patch.parts[name]
    return (block for block in blocks(name, part.numel) if part.counts[block.number])


def _put(patch: Patch, flat: torch.Tensor, name: str, block: Block, saved: list[_Saved]) -> None:
    part = patch.parts[block.name]
    places = patch.places(part, block.number)
    indices = _indices(places, block, flat.device)
    new = as_tensor(patch.new(part, block.number), flat.dtype).to(flat.device)
    saved.append(_Saved(name, block, places, flat[indices]))
    flat[indices] = new


def _indices(places: Places, block: Block, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(places.positions(block.numel) + block.start).to(device)
