"""Makes a patch: the bits of a base that another set of weights has otherwise."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dft_cluster.errors import InputError
from dft_cluster.patch import stack
from dft_cluster.patch.atomic import apart, new_file
from dft_cluster.patch.encoding import Kind, encode
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
    """The patch that turns the folder `base` into what `new` gives, tensor by tensor in the names' order.

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
    """The patch that turns the weights of one model folder into those of another with the same tensors.

    A tensor that is only in one folder, but there the same as another one, counts as tied to it: some
    programs write tied weights twice, others once.
    """
    folder, changed = Folder(base), Folder(other)
    apart(Path(out), folder.path, changed.path)
    partners = _partners(folder, changed)

    def source(name: str) -> Bits:
        return lambda start, stop: changed.bits(partners[name], start, stop)

    return _write(folder, source, Path(out), {"method": "diff", **(metadata or {})}, old_bits)


def _partners(base: Folder, other: Folder) -> dict[str, str]:
    """For each tensor of the base the other folder's one to compare it with; both must have the same form."""
    partners = {name: name for name in base.names if name in other}
    problems: list[str] = []
    for here, there in ((base, other), (other, base)):
        for name in here.names:
            if name not in there:
                twin = _twin(here, name)
                if twin is None or twin not in there:
                    problems.append(f"{name} is only in {here.path}")
                elif here is base:
                    partners[name] = twin
    for name, partner in partners.items():
        was, now = base.entry(name), other.entry(partner)
        if (was.dtype, was.shape) != (now.dtype, now.shape):
            problems.append(f"{name} is {was.dtype} {was.shape} and {now.dtype} {now.shape}")
    if problems:
        listed = "; ".join(problems[:5]) + ("; …" if len(problems) > 5 else "")
        raise InputError(f"{base.path} and {other.path} do not have the same tensors: {listed}")
    return partners


def _twin(folder: Folder, name: str) -> str | None:
    """Another tensor of the folder with the same form and the same bits."""
    mine = folder.entry(name)
    for candidate in folder.names:
        entry = folder.entry(candidate)
        if candidate != name and (entry.dtype, entry.shape) == (mine.dtype, mine.shape) and mine.numel:
            pairs = ((block, folder.bits(name, block.start, block.stop)) for block in blocks(candidate, mine.numel))
            if all(np.array_equal(bits, folder.bits(candidate, b.start, b.stop)) for b, bits in pairs):
                return candidate
    return None


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
        results = ordered(lambda pair: _compare(folder, *pair, old_bits), _pairs(folder, source))
        with closing(results):
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
    positions = np.flatnonzero(old != new)
    places = encode(positions, block.numel, old.itemsize * (2 if old_bits else 1), dense=old_bits)
    before, after = (bits if places.kind == Kind.DENSE else bits[positions] for bits in (old, new))
    result = block_digest(new) if len(positions) else digest
    return _Compared(block, digest, result, len(positions), Change(places, before if old_bits else None, after))


def _record(form: Record, compared: list[_Compared]) -> Record:
    base, result = (tensor_digest([getattr(c, when) for c in compared]) for when in ("base", "result"))
    return Record(form.dtype, form.shape, base, result, sum(c.changed for c in compared))
