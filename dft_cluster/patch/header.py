"""The header of a safetensors file, every claim in it checked against the file's size before it is used."""

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from dft_cluster.errors import InputError

DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "C64": torch.complex64,
}
LARGEST_HEADER = 100_000_000
MOST_DIMENSIONS = 32


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a safetensors file; `start` and `stop` count bytes from the file's beginning."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        return DTYPES[self.dtype].itemsize

    @property
    def bits(self) -> np.dtype[Any]:
        """The unsigned integers for this dtype's bits: compared and copied, so that a NaN stays itself."""
        return np.dtype(f"<u{self.itemsize}")


@dataclass(frozen=True, slots=True)
class Header:
    raw: bytes
    entries: dict[str, Entry]
    metadata: dict[str, str]
    size: int

    @property
    def data_start(self) -> int:
        return len(self.raw)


def read_exact(file: BinaryIO, offset: int, buffer: np.ndarray, path: Path) -> None:
    """Fill `buffer` from `offset`; a single read gives at most 2 GiB, hence the loop."""
    view = buffer.reshape(-1).view(np.uint8).data
    done = 0
    while done < len(view):
        count = os.preadv(file.fileno(), [view[done:]], offset + done)
        if count == 0:
            raise InputError(f"{path} ends at byte {offset + done}, {len(view) - done} bytes too early: truncated?")
        done += count


def read_header(file: BinaryIO, path: Path) -> Header:
    """The header of an open file, or an `InputError` that says what is wrong with it."""
    size = os.fstat(file.fileno()).st_size
    prefix = os.pread(file.fileno(), 8, 0)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or length > min(size - 8, LARGEST_HEADER):
        raise InputError(f"{path} is not a whole safetensors file: its {size} bytes cannot hold its header")
    text = np.empty(length, np.uint8)
    read_exact(file, 8, text, path)
    try:
        parsed = json.loads(text.tobytes(), object_pairs_hook=_unique)
        metadata = parsed.pop("__metadata__", {})
        if not all(isinstance(value, str) for value in metadata.values()):
            raise TypeError("the metadata are not strings")
        entries = {name: _entry(fields, 8 + length) for name, fields in parsed.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} has a broken safetensors header: {error!r}") from error
    end = 8 + length
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != end:
            raise InputError(f"{path}: tensor {name!r} begins at byte {entry.start}, where {end} was due")
        end = entry.stop
    if end != size:
        raise InputError(f"{path}: the header describes {end} bytes, the file has {size}: truncated or damaged")
    return Header(prefix + text.tobytes(), entries, metadata, size)


def header_bytes(tensors: Mapping[str, tuple[str, list[int], int]], metadata: Mapping[str, str]) -> bytes:
    """The JSON of a header whose tensors (dtype, shape, bytes) lie one behind the other as given."""
    described: dict[str, object] = {"__metadata__": dict(metadata)}
    described.update(_laid_out(tensors))
    return json.dumps(described, separators=(",", ":")).encode()


def _laid_out(tensors: Mapping[str, tuple[str, list[int], int]]) -> Iterator[tuple[str, object]]:
    end = 0
    for name, (dtype, shape, size) in tensors.items():
        yield name, {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands in it twice")
    return found


def _entry(fields: dict[str, Any], data_start: int) -> Entry:
    dtype, shape, (start, stop) = fields["dtype"], fields["shape"], fields["data_offsets"]
    if dtype not in DTYPES:
        raise ValueError(f"dtype {str(dtype)[:80]!r} is not one of {', '.join(DTYPES)}")
    sizes = [*shape, start, stop]
    if len(sizes) > MOST_DIMENSIONS or not all(type(size) is int and 0 <= size < 2**63 for size in sizes):
        raise ValueError(f"shape {str(shape)[:80]} or offsets {str((start, stop))[:80]} are no sizes")
    entry = Entry(dtype, tuple(shape), data_start + start, data_start + stop)
    if entry.stop - entry.start != entry.numel * entry.itemsize:
        raise ValueError(f"{entry.stop - entry.start} bytes cannot be {dtype} of shape {shape}")
    return entry
