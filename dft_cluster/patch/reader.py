"""A patch file opened for reading: nothing of it is believed before header, forms and checksum agree."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np

from dft_cluster.errors import InputError
from dft_cluster.patch import record, stack
from dft_cluster.patch.encoding import WORD, Kind, Places
from dft_cluster.patch.fingerprint import BLOCK
from dft_cluster.patch.header import Entry, read_exact, read_header
from dft_cluster.patch.parallel import ordered


@dataclass(frozen=True, slots=True)
class Part:
    """What the patch holds for one changed tensor: where each block's places and values begin."""

    name: str
    numel: int
    kinds: np.ndarray
    counts: np.ndarray
    values: np.ndarray
    """Values before block i: entry i; one entry more than blocks."""
    index: np.ndarray
    """Index bytes before block i, likewise."""


class Patch:
    """A patch whose every byte has been checked; `close` it, or use it in a `with`."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        try:
            self._file: BinaryIO = self.path.open("rb")
        except OSError as error:
            raise InputError(f"patch {self.path} cannot be opened: {error.strerror}") from error
        try:
            self._load()
        except BaseException:
            self.close()
            raise

    @classmethod
    @contextmanager
    def opened(cls, patch: "Path | str | Patch") -> "Iterator[Patch]":
        """A patch given by its path, closed at the end; or one that is open already, left so."""
        if isinstance(patch, Patch):
            yield patch
        else:
            with cls(patch) as found:
                yield found

    def _load(self) -> None:
        header = read_header(self._file, self.path)
        self.size = header.size
        self.metadata = header.metadata
        self._entries = header.entries
        version = self.metadata.get("format_version")
        if version is None:
            raise InputError(f"{self.path} is a safetensors file, but no knowledge patch: it has no format_version")
        if version != record.FORMAT_VERSION:
            known = record.FORMAT_VERSION
            raise InputError(f"{self.path} has format version {version[:40]!r}; this program reads version {known}")
        self.checksum = self.metadata.get("checksum", "")
        stated = record.is_digest(self.checksum) and header.raw.count(self.checksum.encode()) == 1
        if not stated or self.checksum != self._measured(header.raw):
            raise InputError(f"{self.path} is damaged: its content is not that of its checksum {self.checksum[:64]!r}")
        self.has_old_bits = self.metadata.get("old_bits") == "true"
        self.records = record.parse(self.metadata.get("tensors", ""), str(self.path))
        self.below = stack.parse(self.metadata.get("below", "[]"), str(self.path))
        self.base_fingerprint = record.base_fingerprint(self.records)
        self.result_fingerprint = record.result_fingerprint(self.records)
        for key in ("base_fingerprint", "result_fingerprint"):
            if self.metadata.get(key) != getattr(self, key):
                raise InputError(f"{self.path} contradicts itself: its {key} is not that of its list of tensors")
        if not self.has_old_bits and not self.result_fingerprint:
            raise InputError(f"{self.path} has neither old bits nor a result, so that nothing could be checked")
        self.parts = {name: self._part(name) for name, form in self.records.items() if form.changed}
        own = {f"{name}:{what}" for name in self.parts for what in self._kinds_of_entry()}
        if own != set(self._entries):
            raise InputError(f"{self.path} holds tensors that its list does not name")

    def link(self, result_fingerprint: str = "") -> stack.Link:
        """This patch as the member of a stack; what it gave must be told where the patch cannot know it."""
        result = self.result_fingerprint or result_fingerprint
        return stack.Link(self.checksum, self.base_fingerprint, result, self.metadata.get("method", ""))

    def places(self, part: Part, block: int) -> Places:
        start, stop = int(part.index[block]), int(part.index[block + 1])
        index = self._read(f"{part.name}:index", start, stop)
        return Places(Kind(int(part.kinds[block])), int(part.counts[block]), index)

    def positions(self, part: Part, block: int) -> np.ndarray:
        """The places in a block, counted from its beginning."""
        return self.places(part, block).positions(min(BLOCK, part.numel - block * BLOCK))

    def old(self, part: Part, block: int) -> np.ndarray:
        return self._read(f"{part.name}:old", int(part.values[block]), int(part.values[block + 1]))

    def new(self, part: Part, block: int) -> np.ndarray:
        return self._read(f"{part.name}:new", int(part.values[block]), int(part.values[block + 1]))

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self, name: str, start: int, stop: int) -> np.ndarray:
        entry = self._entries[name]
        buffer = np.empty(stop - start, entry.bits)
        read_exact(self._file, entry.start + start * entry.itemsize, buffer, self.path)
        return buffer

    def _measured(self, header: bytes) -> str:
        def digest(start: int) -> bytes:
            piece = np.empty(min(record.PIECE, self.size - start), np.uint8)
            read_exact(self._file, start, piece, self.path)
            return hashlib.sha256(piece.data).digest()

        pieces: Iterator[bytes] = ordered(digest, range(len(header), self.size, record.PIECE))
        return record.checksum(header, self.checksum, pieces)

    def _kinds_of_entry(self) -> list[str]:
        return ["blocks", "index", "new", *(["old"] if self.has_old_bits else [])]

    def _part(self, name: str) -> Part:
        form = self.records[name]
        found: list[Entry] = []
        for what in self._kinds_of_entry():
            entry = self._entries.get(f"{name}:{what}")
            if entry is None:
                raise InputError(f"{self.path} lacks {name}:{what}")
            found.append(entry)
        table, index, *values = found
        blocks = -(-form.numel // BLOCK)
        fits = (table.dtype, table.shape) == ("U32", (blocks, 3)) and (index.dtype, len(index.shape)) == (
            "U8",
            1,
        )
        if not fits or any((v.dtype, v.shape) != (form.dtype, (v.numel,)) for v in values):
            raise InputError(f"{self.path}: what it holds for {name} does not have the form of its {blocks} blocks")
        rows = self._read(f"{name}:blocks", 0, blocks * 3).reshape(blocks, 3).astype(np.int64)
        part = Part(name, form.numel, rows[:, 0], rows[:, 1], _before(rows[:, 1]), _before(rows[:, 2]))
        ends = (part.values[-1], part.index[-1])
        if not _possible(rows.tolist(), form.numel) or any(ends != (v.numel, index.numel) for v in values):
            raise InputError(f"{self.path}: the blocks of {name} do not add up to what it holds for them")
        return part


def _before(sizes: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(sizes)])


def _possible(rows: list[list[int]], numel: int) -> bool:
    """Whether kind, count and bytes of every block fit each other and the block's size."""
    for block, (kind, count, size) in enumerate(rows):
        length = min(BLOCK, numel - block * BLOCK)
        if kind in WORD:
            width = WORD[Kind(kind)].itemsize
            fits = 0 < count <= length and size >= count * width and size % width == 0
        elif kind == Kind.BITMAP:
            fits = 0 < count <= length and size == (length + 7) // 8
        else:
            fits = (kind, count, size) in ((Kind.NONE, 0, 0), (Kind.DENSE, length, 0))
        if not fits:
            return False
    return True
