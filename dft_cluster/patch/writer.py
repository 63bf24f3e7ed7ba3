"""Writes a patch tensor by tensor: the header's room is kept free, and filled once everything is known."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from dft_cluster.errors import InputError
from dft_cluster.patch import record, stack
from dft_cluster.patch.encoding import Places
from dft_cluster.patch.fingerprint import BLOCK
from dft_cluster.patch.header import DTYPES, LARGEST_HEADER, header_bytes
from dft_cluster.patch.record import Record

Sizes = dict[str, tuple[str, list[int], int]]


@dataclass(frozen=True, slots=True)
class PatchSummary:
    """What a new patch holds."""

    path: Path
    checksum: str
    base_fingerprint: str
    result_fingerprint: str
    tensors: int
    changed: int
    elements: int
    size: int


@dataclass(frozen=True, slots=True)
class Change:
    """One block's places and values; `old` is left out of a patch without old bits."""

    places: Places
    old: np.ndarray | None
    new: np.ndarray


class PatchWriter:
    """`add` every changed tensor, then `seal`."""

    def __init__(
        self,
        file: BinaryIO,
        forms: Mapping[str, Record],
        metadata: Mapping[str, str],
        below: Sequence[stack.Link],
        old_bits: bool,
    ) -> None:
        """`forms`: every tensor of the base, `below`: the longest stack that `seal` may be told of."""
        taken = sorted(record.OWN_KEYS & metadata.keys())
        if taken or not all(isinstance(value, str) for value in metadata.values()):
            raise InputError(f"a patch's metadata are texts, without the keys that it writes itself: {taken}")
        self._file = file
        self._metadata = dict(metadata)
        self._old_bits = old_bits
        self._entries: Sizes = {}
        self._pieces: list[bytes] = []
        self._piece = hashlib.sha256()
        self._in_piece = 0
        largest = {
            name: Record(form.dtype, form.shape, record.UNSEALED, record.UNSEALED, form.numel)
            for name, form in forms.items()
        }
        entries: Sizes = {}
        for name, form in forms.items():
            entries |= self._sizes(name, form.dtype, -(-form.numel // BLOCK), 2**62, 2**62)
        self._room = -(-len(self._header(entries, largest, below, record.UNSEALED)) // 8) * 8
        if self._room > LARGEST_HEADER:
            raise InputError(f"a header of {self._room} bytes is over the {LARGEST_HEADER} that safetensors allows")
        file.write(bytes(8 + self._room))

    def add(self, name: str, form: Record, changes: Sequence[Change]) -> None:
        """The changes of a tensor's blocks, one for each block."""
        rows = [(change.places.kind, change.places.count, len(change.places.index)) for change in changes]
        values, index = sum(row[1] for row in rows), sum(row[2] for row in rows)
        self._entries |= self._sizes(name, form.dtype, len(rows), index, values)
        self._write(np.array(rows, "<u4"))
        for change in changes:
            self._write(change.places.index)
        for change in changes if self._old_bits else ():
            assert change.old is not None
            self._write(change.old)
        for change in changes:
            self._write(change.new)

    def seal(self, records: Mapping[str, Record], below: Sequence[stack.Link], path: Path) -> PatchSummary:
        """Write the header, now that all is known."""
        size = self._file.tell()
        if self._in_piece:
            self._pieces.append(self._piece.digest())
        unsealed = self._padded(self._header(self._entries, records, below, record.UNSEALED))
        checksum = record.checksum(unsealed, "", self._pieces)
        self._file.seek(0)
        self._file.write(self._padded(self._header(self._entries, records, below, checksum)))
        return PatchSummary(
            path,
            checksum,
            record.base_fingerprint(records),
            record.result_fingerprint(records),
            sum(1 for form in records.values() if form.changed),
            sum(form.changed for form in records.values()),
            sum(form.numel for form in records.values()),
            size,
        )

    def _sizes(self, name: str, dtype: str, blocks: int, index: int, values: int) -> Sizes:
        """The entries of one tensor, in the order in which their bytes are written."""
        size = values * DTYPES[dtype].itemsize
        old: Sizes = {f"{name}:old": (dtype, [values], size)} if self._old_bits else {}
        return {
            f"{name}:blocks": ("U32", [blocks, 3], blocks * 12),
            f"{name}:index": ("U8", [index], index),
            **old,
            f"{name}:new": (dtype, [values], size),
        }

    def _header(
        self, entries: Sizes, records: Mapping[str, Record], below: Sequence[stack.Link], checksum: str
    ) -> bytes:
        own = {
            "format_version": record.FORMAT_VERSION,
            "base_fingerprint": record.base_fingerprint(records),
            "result_fingerprint": record.result_fingerprint(records),
            "checksum": checksum,
            "old_bits": "true" if self._old_bits else "false",
            "tensors": record.dump(records),
            "below": stack.dump(below),
        }
        return header_bytes(entries, {**own, **self._metadata})

    def _padded(self, header: bytes) -> bytes:
        assert len(header) <= self._room
        return self._room.to_bytes(8, "little") + header.ljust(self._room)

    def _write(self, array: np.ndarray) -> None:
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        self._file.write(data)
        while len(data):
            head = data[: record.PIECE - self._in_piece]
            self._piece.update(head)
            self._in_piece += len(head)
            data = data[len(head) :]
            if self._in_piece == record.PIECE:
                self._pieces.append(self._piece.digest())
                self._piece, self._in_piece = hashlib.sha256(), 0
