"""Says whether a model folder is a patch's base, the patched model, or neither."""

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from dft_cluster.patch.fingerprint import (
    Block,
    block_digest,
    blocks,
    combine,
    fingerprint,
    tensor_digest,
)
from dft_cluster.patch.folder import Folder
from dft_cluster.patch.parallel import ordered
from dft_cluster.patch.reader import Patch
from dft_cluster.patch.record import Record
from dft_cluster.patch.rewrite import unlike_form

State = Literal["base", "patched", "neither"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a folder is, and the first tensor (by name) that is not the base's, and not the patched model's.

    `detail` says what is known of the first tensor that is as in neither.
    """

    state: State
    fingerprint: str
    unlike_base: str | None
    unlike_patched: str | None
    detail: str


@dataclass(frozen=True, slots=True)
class _Seen:
    block: Block
    found: bytes
    reverted: bytes
    """Of the block with the old bits put back, where this is needed and all its places hold the new ones."""
    stray: int | None
    """The first of the patch's places that holds neither the old nor the new bits."""


def verify(patch: Path | str | Patch, model: Path | str) -> Verdict:
    """One pass over the folder; tensors in other forms than the patch's make it neither at once."""
    with Patch.opened(patch) as opened:
        folder = Folder(model)
        unlike = unlike_form(opened, folder)
        if unlike is not None:
            return _other_form(opened, folder, unlike)
        every = (block for name in folder.names for block in blocks(name, folder.entry(name).numel))
        digests: list[tuple[str, str, tuple[int, ...], str]] = []
        unlike_base: list[str] = []
        unlike_patched: list[str] = []
        detail = ""
        seen: list[_Seen] = []
        with closing(ordered(lambda block: _see(opened, folder, block), every)) as results:
            for result in results:
                seen.append(result)
                if not result.block.last:
                    continue
                name, record = result.block.name, opened.records[result.block.name]
                digest = tensor_digest([s.found for s in seen])
                digests.append((name, record.dtype, record.shape, digest))
                is_base, is_patched = digest == record.base, _is_patched(record, digest, seen)
                if not is_base:
                    unlike_base.append(name)
                if not is_patched:
                    unlike_patched.append(name)
                if not is_base and not is_patched and not detail:
                    detail = f"{name} is neither: {_where(record, seen)}"
                seen.clear()
        state: State = "base" if not unlike_base else "patched" if not unlike_patched else "neither"
        if state == "neither" and not detail:
            detail = "some tensors are the base's and some the patched model's"
        return Verdict(state, combine(digests), _first(unlike_base), _first(unlike_patched), detail)


def _see(patch: Patch, folder: Folder, block: Block) -> _Seen:
    bits = folder.bits(block.name, block.start, block.stop)
    found = block_digest(bits)
    part = patch.parts.get(block.name)
    if part is None or not patch.has_old_bits or not part.counts[block.number]:
        return _Seen(block, found, found, None)
    positions = patch.positions(part, block.number)
    old, new, now = patch.old(part, block.number), patch.new(part, block.number), bits[positions]
    stray = np.flatnonzero((now != old) & (now != new))
    first = block.start + int(positions[stray[0]]) if len(stray) else None
    if patch.records[block.name].result or not np.array_equal(now, new):
        return _Seen(block, found, b"", first)
    bits[positions] = old
    return _Seen(block, found, block_digest(bits), None)


def _is_patched(record: Record, digest: str, seen: list[_Seen]) -> bool:
    """By the digest the patch states, or, where it states none, by the base's once the old bits are back."""
    return digest == record.result if record.result else tensor_digest([s.reverted for s in seen]) == record.base


def _where(record: Record, seen: list[_Seen]) -> str:
    strays = [s.stray for s in seen if s.stray is not None]
    if strays:
        place = tuple(int(i) for i in np.unravel_index(strays[0], record.shape))
        return f"element {place} holds neither the old nor the new bits"
    if not record.changed:
        return "the patch leaves it as it is in the base"
    return "it differs outside the patch's places, or only some of them hold the new bits"


def _other_form(patch: Patch, folder: Folder, name: str) -> Verdict:
    record = patch.records.get(name)
    there = f"{record.dtype} {record.shape}" if record else "not there"
    here = f"{folder.entry(name).dtype} {folder.shape(name)}" if name in folder else "not there"
    return Verdict("neither", fingerprint(folder), name, name, f"{name} is {here}; in the base {there}")


def _first(names: list[str]) -> str | None:
    return names[0] if names else None
