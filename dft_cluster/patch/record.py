"""What a patch file says about itself: its metadata, and one record for every tensor of its base.

It is a safetensors file. For a changed tensor X it holds, block after block of 2^20 elements:

- `X:blocks`  u32 [blocks, 3]: kind of encoding, number of values, bytes of the index
- `X:index`   u8: the encoded places (`encoding.py`)
- `X:old`     in X's dtype: the values before; absent from a patch without old bits
- `X:new`     in X's dtype: the values after

The checksum is the SHA-256 of the whole header, its own 64 digits read as zeros, followed by the SHA-256s of
the data's pieces of 4 MiB.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dft_cluster.errors import InputError
from dft_cluster.patch.fingerprint import combine
from dft_cluster.patch.header import DTYPES

FORMAT_VERSION = "1"
PIECE = 4 << 20
UNSEALED = "0" * 64
DIGITS = frozenset("0123456789abcdef")
OWN_KEYS = frozenset(
    {"format_version", "base_fingerprint", "result_fingerprint", "checksum", "old_bits", "tensors", "below"}
)
"""Written by this package alone; all other metadata are the caller's."""


@dataclass(frozen=True, slots=True)
class Record:
    """One tensor of the base: its form, its digest before and after, and how many elements changed.

    `result` is empty where it cannot be known (a composition made without its base at hand).
    """

    dtype: str
    shape: tuple[int, ...]
    base: str
    result: str
    changed: int

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


def dump(records: Mapping[str, Record]) -> str:
    return json.dumps(
        {name: [r.dtype, r.shape, r.base, r.result, r.changed] for name, r in records.items()},
        separators=(",", ":"),
    )


def parse(text: str, where: str) -> dict[str, Record]:
    try:
        return {name: _record(*fields) for name, fields in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{where}: its list of tensors is broken: {error!r}") from error


def _record(dtype: str, shape: list[int], base: str, result: str, changed: int) -> Record:
    if dtype not in DTYPES or not all(type(size) is int and 0 <= size < 2**63 for size in [*shape, changed]):
        raise ValueError(f"{str(dtype)[:80]} {str(shape)[:80]}")
    if not is_digest(base) or not (is_digest(result) or result == "") or changed > math.prod(shape):
        raise ValueError("digests or counts that cannot be")
    return Record(dtype, tuple(shape), base, result, changed)


def is_digest(text: object) -> bool:
    return isinstance(text, str) and len(text) == 64 and set(text) <= DIGITS


def base_fingerprint(records: Mapping[str, Record]) -> str:
    return combine((name, r.dtype, r.shape, r.base) for name, r in records.items())


def result_fingerprint(records: Mapping[str, Record]) -> str:
    """Empty where one of the results is not known."""
    if not all(r.result for r in records.values()):
        return ""
    return combine((name, r.dtype, r.shape, r.result) for name, r in records.items())


def checksum(header: bytes, stated: str, pieces: Iterable[bytes]) -> str:
    """Of a header that states `stated`, and of the digests of the data's pieces."""
    unsealed = header.replace(stated.encode(), UNSEALED.encode()) if stated else header
    return hashlib.sha256(unsealed + b"".join(pieces)).hexdigest()


def described(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The caller's part of a patch's metadata."""
    return {key: value for key, value in metadata.items() if key not in OWN_KEYS}
