"""Copies a model's weight files with a patch's new or old bits put in, block by block and checked on the way.

The memory needed does not grow with the tensors. The copies have the old files' names, headers and layout.
"""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np

from dft_cluster.patch.atomic import syncing
from dft_cluster.patch.fingerprint import (
    Block,
    block_digest,
    blocks,
    combine,
    count_blocks,
    tensor_digest,
)
from dft_cluster.patch.folder import Folder
from dft_cluster.patch.parallel import ordered
from dft_cluster.patch.reader import Patch

SYNC_EVERY = 64 << 20


class UnlikeError(Exception):
    """The weights are not those the patch was made for; `name` is the first tensor that shows it."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


@dataclass(frozen=True, slots=True)
class Put:
    """A block with a patch's bits in it, its digest, and the one from before where it was taken."""

    bits: np.ndarray
    before: bytes
    after: bytes


def needs_both(patch: Patch, name: str, forward: bool) -> bool:
    """Whether a tensor must be hashed before the patch, too.

    The bits expected at the places and the digest of the outcome together prove what was there before. Only
    going forward one of the two may not be known.
    """
    return forward and not (patch.has_old_bits and patch.records[name].result)


def put(patch: Patch, block: Block, bits: np.ndarray, forward: bool) -> Put:
    """Put a block's new bits in place of the old ones, or the old ones in place of the new ones."""
    before = block_digest(bits) if needs_both(patch, block.name, forward) else b""
    part = patch.parts.get(block.name)
    if part is None or not part.counts[block.number]:
        return Put(bits, before, before or block_digest(bits))
    positions = patch.positions(part, block.number)
    give, expect = patch.new(part, block.number), None
    if patch.has_old_bits:
        old = patch.old(part, block.number)
        give, expect = (give, old) if forward else (old, give)
    if expect is not None and not np.array_equal(bits[positions], expect):
        raise UnlikeError(block.name)
    bits[positions] = give
    return Put(bits, before, block_digest(bits))


def rewrite(patch: Patch, folder: Folder, target: Path, forward: bool) -> str:
    """Write the weight files to `target` with the new bits, or the old ones; gives their fingerprint.

    Raises `UnlikeError` at the first tensor that is not the base's (not the patched one's).
    """
    unlike = unlike_form(patch, folder)
    if unlike is not None:
        raise UnlikeError(unlike)

    def work(block: Block) -> Put:
        return put(patch, block, folder.bits(block.name, block.start, block.stop), forward)

    layout = {file: sorted(h.entries, key=lambda name: h.entries[name].start) for file, h in folder.headers.items()}
    every = (block for names in layout.values() for name in names for block in blocks(name, folder.entry(name).numel))
    digests: dict[str, str] = {}
    with closing(ordered(work, every)) as results, syncing() as sync:
        for file, names in layout.items():
            with (target / file.name).open("xb") as new:
                new.write(folder.headers[file].raw)
                synced = 0
                for name in names:
                    done = islice(results, count_blocks(folder.entry(name).numel))
                    digests[name] = _write(patch, name, done, new, forward)
                    if new.tell() - synced >= SYNC_EVERY:
                        synced = new.tell()
                        sync(new)
                sync(new)
    return combine((name, r.dtype, r.shape, digests[name]) for name, r in patch.records.items())


def _write(patch: Patch, name: str, done: Iterator[Put], new: BinaryIO, forward: bool) -> str:
    before: list[bytes] = []
    after: list[bytes] = []
    for block in done:
        new.write(block.bits.view(np.uint8).data)
        before.append(block.before)
        after.append(block.after)
    record, digest = patch.records[name], tensor_digest(after)
    if digest != (record.result or digest if forward else record.base):
        raise UnlikeError(name)
    if needs_both(patch, name, forward) and tensor_digest(before) != record.base:
        raise UnlikeError(name)
    return digest


def unlike_form(patch: Patch, folder: Folder) -> str | None:
    """The first tensor whose name, dtype or shape is not the same on both sides."""
    for name in sorted({*folder.names, *patch.records}):
        record = patch.records.get(name)
        if record is None or name not in folder:
            return name
        entry = folder.entry(name)
        if (entry.dtype, entry.shape) != (record.dtype, record.shape):
            return name
    return None
