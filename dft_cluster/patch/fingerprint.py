"""What a model's weights are, in 64 hexadecimal digits.

A tensor's digest is the SHA-256 of the SHA-256s of its blocks of 2^20 elements, so that threads can share a
tensor. The fingerprint is the SHA-256 of one line (name, dtype, shape, digest) per tensor, in the order of
names: which file a tensor lies in, and in what order, does not enter.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dft_cluster.patch.folder import Folder
from dft_cluster.patch.parallel import ordered

BLOCK = 1 << 20
"""Elements that are read, hashed and encoded as one; fingerprints and patches are defined by it."""


@dataclass(frozen=True, slots=True)
class Block:
    """Elements `start` to `stop` of the flattened tensor `name`, its `number`-th block."""

    name: str
    number: int
    start: int
    stop: int
    last: bool

    @property
    def numel(self) -> int:
        return self.stop - self.start


def count_blocks(numel: int) -> int:
    """How many blocks a tensor has; one without elements has one empty block, so that each has a last one."""
    return max(-(-numel // BLOCK), 1)


def blocks(name: str, numel: int) -> Iterator[Block]:
    for number in range(count_blocks(numel)):
        start, stop = number * BLOCK, min((number + 1) * BLOCK, numel)
        yield Block(name, number, start, stop, stop == numel)


def block_digest(bits: np.ndarray) -> bytes:
    return hashlib.sha256(bits.view(np.uint8).data).digest()


def tensor_digest(block_digests: Iterable[bytes]) -> str:
    return hashlib.sha256(b"".join(block_digests)).hexdigest()


def combine(tensors: Iterable[tuple[str, str, tuple[int, ...], str]]) -> str:
    """The fingerprint of tensors given as (name, dtype, shape, digest), in any order."""
    whole = hashlib.sha256()
    for name, dtype, shape, digest in sorted(tensors):
        whole.update(json.dumps([name, dtype, list(shape), digest]).encode() + b"\n")
    return whole.hexdigest()


def digests(folder: Folder) -> Iterator[tuple[str, str]]:
    """Every tensor's name and digest, in the order of the names, in one pass over the folder."""

    def digest(block: Block) -> tuple[Block, bytes]:
        return block, block_digest(folder.bits(block.name, block.start, block.stop))

    found: list[bytes] = []
    every = (block for name in folder.names for block in blocks(name, folder.entry(name).numel))
    for block, value in ordered(digest, every):
        found.append(value)
        if block.last:
            yield block.name, tensor_digest(found)
            found.clear()


def fingerprint(folder: Path | str | Folder) -> str:
    """The fingerprint of a model folder's weights, in one streaming pass."""
    opened = folder if isinstance(folder, Folder) else Folder(folder)
    forms = {name: opened.entry(name) for name in opened.names}
    return combine((name, forms[name].dtype, forms[name].shape, digest) for name, digest in digests(opened))
