"""One rank's part of a finished round: a safetensors file of θ's fragments, written and read in bounded memory.

A fragment is named `parameter:start:length`. It is either dense (`values`) or sparse over the round before (`bits`, one for
each element, and `values` of those that are set). What an optimizer must remember lies beside it under its own name.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from dft_cluster.patch.header import Header, header_bytes, read_exact, read_header
from dft_cluster.runs.patience import patiently
from dft_cluster.training.exchange import scatter

BLOCK = 1 << 21  # a multiple of 8, so that bitmaps can be cut at it


@dataclass(frozen=True)
class Stored:
    """A fragment to be written: `mark` says which values count (None: all)."""

    parameter: int
    start: int
    values: Tensor
    mark: Tensor | None = None
    more: dict[str, Tensor] = field(default_factory=dict)
    added: Callable[[int, int], Tensor] | None = None
    """What comes to the values from one place to another, worked out as they are written."""

    def blocks(self) -> Iterator[Tensor]:
        for first in range(0, self.values.numel(), BLOCK):
            block = self.values[first : first + BLOCK]
            yield block if self.added is None else block + self.added(first, first + block.numel())

    @property
    def key(self) -> str:
        return f"{self.parameter}:{self.start}:{self.values.numel()}"


@dataclass(frozen=True)
class Written:
    """What the manifest says of a part."""

    name: str
    size: int
    sha256: str


def write(stream: BinaryIO, name: str, fragments: Sequence[Stored]) -> Written:
    """Streams a part out; nothing is copied whole."""
    described: dict[str, tuple[str, list[int], int]] = {}
    for f in fragments:
        count = f.values.numel() if f.mark is None else int(sum(np.count_nonzero(block) for block in _marks(f)))
        if f.mark is not None:
            described[f"{f.key}:bits"] = ("U8", [(f.values.numel() + 7) // 8], (f.values.numel() + 7) // 8)
        described[f"{f.key}:values"] = ("F32", [count], 4 * count)
        described |= {f"{f.key}:{n}": ("F32", [t.numel()], 4 * t.numel()) for n, t in f.more.items()}
    text = header_bytes(described, {"format": "dft-round-part-1"})
    text += b" " * (-len(text) % 8)
    digest, size = hashlib.sha256(), 0
    for block in _bytes(text, fragments):
        stream.write(block)
        digest.update(block)
        size += len(block)
    return Written(name, size, digest.hexdigest())


def _bytes(header: bytes, fragments: Iterable[Stored]) -> Iterator[bytes | memoryview]:
    yield len(header).to_bytes(8, "little") + header
    for f in fragments:
        if f.mark is None:
            yield from map(_raw, f.blocks())
        else:
            yield from (np.packbits(block).data for block in _marks(f))
            for block, mask in zip(f.values.split(BLOCK), _marks(f), strict=True):
                yield block.cpu().numpy().take(np.flatnonzero(mask)).view(np.uint8).data
        for tensor in f.more.values():
            yield from (_raw(block) for block in tensor.reshape(-1).split(BLOCK))


def _marks(fragment: Stored) -> Iterator[np.ndarray]:
    assert fragment.mark is not None
    return (block.cpu().numpy() != 0 for block in fragment.mark.split(BLOCK))


def _raw(block: Tensor) -> memoryview:
    return block.cpu().contiguous().numpy().view(np.uint8).data


class Part:
    """A written part. Its fragments are laid over θ wherever they overlap what a rank holds, whatever the ranks."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header: Header = self._read_header()
        self._keys: dict[int, list[tuple[int, int, str]]] = {}
        for name in self.header.entries:
            key, _, what = name.rpartition(":")
            if what == "values":
                parameter, start, length = map(int, key.split(":"))
                self._keys.setdefault(parameter, []).append((start, length, key))

    def overlay(self, parameter: int, start: int, out: Tensor, what: str = "values") -> None:
        """Writes what this part says of elements `start`, … of a flat parameter into `out`."""
        stop = start + out.numel()
        for first, length, key in self._keys.get(parameter, []):
            low, high = max(start, first), min(stop, first + length)
            if low < high and f"{key}:{what}" in self.header.entries:
                self._lay(key, what, first, low, high, out[low - start : high - start])

    def holds(self, parameter: int) -> bool:
        """Whether this part says anything of a parameter."""
        return parameter in self._keys

    def remembers(self, what: str) -> bool:
        """Whether fragments carry something under this name beside their values."""
        return any(name.endswith(f":{what}") for name in self.header.entries)

    def scalar(self, what: str) -> float | None:
        """A number that is kept once for each fragment, as an optimizer's step is."""
        names = [name for name in self.header.entries if name.endswith(f":{what}")]
        return float(self._read(names[0], 0, 1, np.dtype("<f4"))[0]) if names else None

    def _lay(self, key: str, what: str, first: int, low: int, high: int, out: Tensor) -> None:
        bits = f"{key}:bits"
        if what != "values" or bits not in self.header.entries:
            out.copy_(torch.from_numpy(self._read(f"{key}:{what}", low - first, high - first, np.dtype("<f4"))))
            return
        entry = self.header.entries[bits]
        before = 0
        for place in range(0, high - first, BLOCK):
            packed = self._read(
                bits, place // 8, min(place + BLOCK + 7, (entry.stop - entry.start) * 8) // 8, np.dtype("u1")
            )
            mask = np.unpackbits(packed)[: min(BLOCK, high - first - place)].view(bool)
            count = int(np.count_nonzero(mask))
            skip = max(0, low - first - place)
            if skip < len(mask):
                skipped = int(np.count_nonzero(mask[:skip]))
                values = self._read(f"{key}:values", before + skipped, before + count, np.dtype("<f4"))
                at = place + skip - (low - first)
                target = out[at : at + len(mask) - skip]
                scatter(target, torch.from_numpy(np.flatnonzero(mask[skip:])), torch.from_numpy(values))
            before += count

    @patiently
    def _read_header(self) -> Header:
        with self.path.open("rb") as stream:
            return read_header(stream, self.path)

    @patiently
    def _read(self, name: str, start: int, stop: int, dtype: np.dtype[Any]) -> np.ndarray:
        buffer = np.empty(stop - start, dtype)
        with self.path.open("rb", buffering=0) as stream:
            read_exact(stream, self.header.entries[name].start + start * dtype.itemsize, buffer, self.path)
        return buffer
