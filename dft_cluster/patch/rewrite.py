"""Copies a model's weight files with a patch's new or old bits put in, block by block and checked on the way.

The memory needed does not grow with the tensors. The copies have the old files' names, headers and layout.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from dft_cluster.errors import InputError
from dft_cluster.patch.fingerprint import Block, block_digest, blocks, combine, tensor_digest
from dft_cluster.patch.folder import Folder
from dft_cluster.patch.header import Header
from dft_cluster.patch.parallel import ordered
from dft_cluster.patch.reader import Patch


class UnlikeError(Exception):
    """The weights are not those the patch was made for; `name` is the first tensor that shows it."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


@dataclass(frozen=True, slots=True)
class Put:
    """A block with a patch's bits in it, and its digests before and after (equal if nothing was put)."""

    block: Block
    bits: np.ndarray
    before: bytes
    after: bytes


def put_new(patch: Patch, block: Block, bits: np.ndarray) -> Put:
    before = after = block_digest(bits)
    part = patch.parts.get(block.name)
    if part is not None and part.counts[block.number]:
        bits[patch.positions(part, block.number)] = patch.new(part, block.number)
        after = block_digest(bits)
    return Put(block, bits, before, after)


def put_old(patch: Patch, block: Block, bits: np.ndarray) -> Put:
    """The way back; the new bits at their places and the base's digest around them say that it is the way."""
    part = patch.parts.get(block.name)
    if part is not None and part.counts[block.number]:
        positions = patch.positions(part, block.number)
        if not np.array_equal(bits[positions], patch.new(part, block.number)):
            raise UnlikeError(block.name)
        bits[positions] = patch.old(part, block.number)
    digest = block_digest(bits)
    return Put(block, bits, digest, digest)


def rewrite(patch: Patch, folder: Folder, target: Path, forward: bool) -> str:
    """Write the weight files to `target` with the new bits, or the old ones; gives their fingerprint.

    Raises `UnlikeError` at the first tensor that is not the base's (not the patched one's).
    """
    unlike = unlike_form(patch, folder)
    if unlike is not None:
        raise UnlikeError(unlike)
    put = put_new if forward else put_old
    digests: dict[str, str] = {}
    for file, header in folder.headers.items():
        with (target / file.name).open("xb") as new:
            new.write(header.raw)
            for name, before, after in _copied(folder, header, new, lambda *block: put(patch, *block)):
                record = patch.records[name]
                if (before if forward else after) != record.base:
                    raise UnlikeError(name)
                if forward and record.result and after != record.result:
                    raise InputError(
                        f"{patch.path} contradicts itself: it does not give what it says for {name}"
                    )
                digests[name] = after
            new.flush()
            os.fsync(new.fileno())
    return combine((name, r.dtype, r.shape, digests[name]) for name, r in patch.records.items())


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


def _copied(
    folder: Folder, header: Header, new: BinaryIO, put: Callable[[Block, np.ndarray], Put]
) -> Iterator[tuple[str, str, str]]:
    """Write one file's tensors in the order of their bytes; their names, digests before and digests after."""
    names = sorted(header.entries, key=lambda name: header.entries[name].start)
    every = (block for name in names for block in blocks(name, header.entries[name].numel))
    before: list[bytes] = []
    after: list[bytes] = []
    with closing(ordered(lambda b: put(b, folder.bits(b.name, b.start, b.stop)), every)) as results:
        for result in results:
            new.write(result.bits.view(np.uint8).data)
            before.append(result.before)
            after.append(result.after)
            if result.block.last:
                yield result.block.name, tensor_digest(before), tensor_digest(after)
                before.clear()
                after.clear()
