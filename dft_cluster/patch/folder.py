"""A model folder as named tensors, read a slice at a time and never mapped whole."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dft_cluster.errors import InputError
from dft_cluster.patch.header import DTYPES, Entry, Header, read_exact, read_header

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


class Folder:
    """The safetensors files of a model folder: `model.safetensors`, else those its index names, else all at its top.

    That is the order in which transformers looks, so that an index or shards of an earlier save beside it count for neither.
    Only the headers are kept; every read opens its file, so that threads can share a folder.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.headers: dict[Path, Header] = {}
        self._file_of: dict[str, Path] = {}
        for file in _weight_files(self.path):
            try:
                with file.open("rb") as opened:
                    self.headers[file] = read_header(opened, file)
            except OSError as error:
                raise InputError(f"{file} cannot be read: {error.strerror}") from error
            for name in self.headers[file].entries:
                if name in self._file_of:
                    raise InputError(f"tensor {name!r} stands in both {self._file_of[name]} and {file}; keep one")
                self._file_of[name] = file
        self.names = sorted(self._file_of)

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def entry(self, name: str) -> Entry:
        if name not in self._file_of:
            raise InputError(f"{self.path} has no tensor {name!r}")
        return self.headers[self._file_of[name]].entries[name]

    def dtype(self, name: str) -> torch.dtype:
        return DTYPES[self.entry(name).dtype]

    def shape(self, name: str) -> tuple[int, ...]:
        return self.entry(name).shape

    def tensor(self, name: str) -> torch.Tensor:
        return self.flat(name, 0, self.entry(name).numel).reshape(self.shape(name))

    def flat(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Elements `start` to `stop` of the flattened tensor, in its own dtype; only their bytes are read."""
        return as_tensor(self.bits(name, start, stop), self.dtype(name))

    def bits(self, name: str, start: int, stop: int) -> np.ndarray:
        """The same elements as unsigned integers of the dtype's width."""
        entry = self.entry(name)
        if not 0 <= start <= stop <= entry.numel:
            raise InputError(f"{name} has {entry.numel} elements; {start}:{stop} does not lie within them")
        buffer = np.empty(stop - start, entry.bits)
        file = self._file_of[name]
        with file.open("rb", buffering=0) as opened:
            read_exact(opened, entry.start + start * entry.itemsize, buffer, file)
        return buffer


def as_tensor(bits: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """The same memory seen as a flat tensor."""
    return torch.from_numpy(bits.view(np.uint8)).view(dtype)


def as_bits(tensor: torch.Tensor) -> np.ndarray:
    """A tensor's elements, flat, as unsigned integers; its own memory if contiguous and on the CPU."""
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return raw.view(f"<u{tensor.dtype.itemsize}")


def _weight_files(path: Path) -> list[Path]:
    if not path.is_dir():
        raise InputError(f"{path} is not a folder; a model folder with *.safetensors files is needed")
    if (path / SINGLE).is_file():
        return [path / SINGLE]
    index = path / INDEX
    if index.exists():
        return [path / name for name in _indexed(index)]
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise InputError(f"{path} has no *.safetensors file; save the model with safe_serialization first")
    return files


def _indexed(index: Path) -> list[str]:
    try:
        weight_map: Any = json.loads(index.read_bytes())["weight_map"]
        names = sorted(set(weight_map.values()))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(f"{index} is not an index of safetensors files: {error!r}") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not (index.parent / name).is_file():
            raise InputError(f"{index} names {name!r}, which is no file beside it")
    if not names:
        raise InputError(f"{index} names no *.safetensors file")
    return names
