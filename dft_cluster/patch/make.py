"""Makes a patch: the bits of a base that another set of weights has otherwise."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dft_cluster.errors import InputError
from dft_cluster.patch import stack
from dft_cluster.patch.atomic import new_file
from dft_cluster.patch.encoding import Kind, Places, encode
from dft_cluster.patch.fingerprint import Block, block_digest, blocks, tensor_digest
from dft_cluster.patch.folder import Folder, as_bits
from dft_cluster.patch.parallel import ordered
from dft_cluster.patch.record import Record, base_fingerprint
from dft_cluster.patch.writer import Change, PatchSummary, PatchWriter

Bits = Callable[[int, int], np.ndarray]
"""Elements from `start` to `stop` of one flattened tensor, as unsigned integers."""


def make(
    base: Path | str,
    new: Callable[[str], torch.Tensor | None],
    out: Path | str,
    metadata: Mapping[str, str],
    old_bits: bool = True,
) -> PatchSummary:
    """The patch that turns the folder `base` into what `new` gives, tensor by tensor, in the names' order.

    `new(name)` is a tensor in the base's dtype and shape, or None where it is unchanged. The patch takes the
    name `out` once it is complete.
    """
    folder = Folder(base)

    def source(name: str) -> Bits | None:
        tensor = new(name)
        if tensor is None:
            return None
        was, now = (folder.dtype(name), folder.shape(name)), (tensor.dtype, tuple(tensor.shape))
        if was != now:
            raise InputError(f"{name} is {was[0]} {was[1]} in {folder.path}, the new one {now[0]} {now[1]}")
        bits = as_bits(tensor)
        return lambda start, stop: bits[start:stop]

    return _write(folder, source, Path(out), metadata, old_bits)


def diff(
    base: Path | str,
    other: Path | str,
    out: Path | str,
    metadata: Mapping[str, str] | None = None,
    old_bits: bool = True,
) -> PatchSummary:
    """The patch that turns the weights of one model folder into those of another with the same tensors."""
    folder, changed = Folder(base), Folder(other)
    require_same_forms(folder, changed)

    def source(name: str) -> Bits:
        return lambda start, stop: changed.bits(name, start, stop)

    return _write(folder, source, Path(out), {"method": "diff", **(metadata or {})}, old_bits)


def require_same_forms(base: Folder, other: Folder) -> None:
    """Refuse two folders whose tensors differ in name, dtype or shape."""
    problems = [f"{name} is only in {base.path}" for name in base.names if name not in other]
    problems += [f"{name} is only in {other.path}" for name in other.names if name not in base]
    for name in base.names:
        if name in other:
            was, now = base.entry(name), other.entry(name)
            if (was.dtype, was.shape) != (now.dtype, now.shape):
                problems.append(f"{name} is {was.dtype} {was.shape} and {now.dtype} {now.shape}")
    if problems:
        listed = "; ".join(problems[:5]) + ("; …" if len(problems) > 5 else "")
        raise InputError(f"{base.path} and {other.path} differ in {len(problems)} tensors' forms: {listed}")


@dataclass(frozen=True, slots=True)
class _Compared:
    block: Block
    base: bytes
    result: bytes
    changed: int
    change: Change


def _write(
    folder: Folder,
    source: Callable[[str], Bits | None],
    out: Path,
    metadata: Mapping[str, str],
    old_bits: bool,
) -> PatchSummary:
    forms = {name: Record(e.dtype, e.shape, "", "", 0) for name in folder.names for e in [folder.entry(name)]}
    carried = stack.carried(folder.path)
    records: dict[str, Record] = {}
    with new_file(out) as file:
        writer = PatchWriter(file, forms, metadata, carried, old_bits)
        compared: list[_Compared] = []
        with closing(
            ordered(lambda item: _compare(folder, *item, old_bits), _pairs(folder, source))
        ) as results:
            for result in results:
                compared.append(result)
                if result.block.last:
                    name = result.block.name
                    records[name] = _record(forms[name], compared)
                    if records[name].changed:
                        writer.add(name, forms[name], [c.change for c in compared])
                    compared.clear()
        return writer.seal(records, stack.below(carried, base_fingerprint(records)), out)


def _pairs(folder: Folder, source: Callable[[str], Bits | None]) -> Iterator[tuple[Block, Bits | None]]:
    for name in folder.names:
        bits = source(name)
        for block in blocks(name, folder.entry(name).numel):
            yield block, bits


def _compare(folder: Folder, block: Block, other: Bits | None, old_bits: bool) -> _Compared:
    old = folder.bits(block.name, block.start, block.stop)
    digest = block_digest(old)
    new = old if other is None else other(block.start, block.stop)
    if new is old or np.array_equal(old, new):
        nowhere = encode(np.zeros(0, bool), 0, dense=False)
        return _Compared(block, digest, digest, 0, Change(nowhere, old[:0] if old_bits else None, new[:0]))
    changed = old != new
    places = encode(changed, old.itemsize * (2 if old_bits else 1), dense=old_bits)
    values = pick(places, changed, old) if old_bits else None
    return _Compared(
        block,
        digest,
        block_digest(new),
        int(np.count_nonzero(changed)),
        Change(places, values, pick(places, changed, new)),
    )


def pick(places: Places, changed: np.ndarray, values: np.ndarray) -> np.ndarray:
    """A block's values at its places."""
    return values if places.kind == Kind.DENSE else values[changed]


def _record(form: Record, compared: list[_Compared]) -> Record:
    base, result = (tensor_digest([getattr(c, when) for c in compared]) for when in ("base", "result"))
    return Record(form.dtype, form.shape, base, result, sum(c.changed for c in compared))
