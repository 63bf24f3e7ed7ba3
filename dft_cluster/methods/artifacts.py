"""The models that a run leaves, made from its checkpoints: the base it started from, the patch, the updated model."""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from dft_cluster.config import Config
from dft_cluster.models.structure import Parameter
from dft_cluster.patch import stack
from dft_cluster.patch.apply import apply
from dft_cluster.patch.folder import Folder
from dft_cluster.patch.make import make
from dft_cluster.runs.parts import Part
from dft_cluster.runs.storage import Storage


class Overlay:
    """The tensors of a model folder with the parts of finished rounds laid over them, one tensor at a time."""

    def __init__(self, folder: Folder, parameters: Sequence[Parameter], parts: Sequence[Part]) -> None:
        self._folder, self._parts = folder, parts
        self._by_name = {name: p for p in parameters for name in (p.saved, *p.copies)}

    def __call__(self, name: str) -> torch.Tensor | None:
        """The new tensor: the fp32 master cast to the file's dtype; None for one that no run updates.

        A second copy of a tied weight in the files follows the first.
        """
        parameter = self._by_name.get(name)
        if parameter is None:
            return None
        master = self._folder.flat(name, 0, parameter.numel).float()
        for part in self._parts:
            part.overlay(parameter.index, 0, master)
        return master.to(self._folder.dtype(name)).reshape(parameter.shape)


def make_patch(
    base: Path,
    parameters: Sequence[Parameter],
    storage: Storage,
    chain: Sequence[Sequence[str]],
    metadata: dict[str, str],
    scratch: Path,
) -> Path:
    """patch.safetensors of the run: what its kept round changed in the base. Returns a local path of it."""
    parts = [Part(storage.fetch(name, scratch)) for names in chain for name in names]
    out = (storage.local or scratch) / "patch.safetensors"
    make(base, Overlay(Folder(base), parameters, parts), out, metadata)
    storage.put(out, "patch.safetensors")
    return out


def export(patch: Path, base: Path, storage: Storage, scratch: Path) -> None:
    """model/: apply(patch, base), never a dump of live weights."""
    _as_folder(storage, "model", scratch, lambda out: apply(patch, base, out))


def write_base(
    model: Path, parameters: Sequence[Parameter], storage: Storage, parts: Sequence[str], scratch: Path
) -> None:
    """base/: the warmed model in the files' own dtypes. It is a base of its own, on which nothing is stacked."""
    overlay = Overlay(Folder(model), parameters, [Part(storage.fetch(name, scratch)) for name in parts])
    warmed = scratch / "warm-up.safetensors"
    make(model, overlay, warmed, {"method": "warm-up"}, old_bits=False)

    def write(out: Path) -> None:
        apply(warmed, model, out)
        (out / stack.RECORD).unlink(missing_ok=True)

    _as_folder(storage, "base", scratch, write)


def _as_folder(storage: Storage, name: str, scratch: Path, write: Callable[[Path], Any]) -> None:
    storage.remove(name)
    out = (storage.local or scratch) / name
    shutil.rmtree(out, ignore_errors=True)
    write(out)
    storage.put(out, name)


def patch_metadata(config: Config, identity: dict[str, Any], rounds: int, figures: dict[str, Any]) -> dict[str, str]:
    """What the patch says of where it comes from."""
    method = config.method
    text = json.dumps(identity["config"], sort_keys=True)
    metrics = {k: figures[k] for k in ("reliability", "generality", "locality", "protocol") if k in figures}
    delicate = {"top": str(method.top), "scale": str(method.scale)} if method.name == "dft" else {}
    return delicate | {
        "method": method.name,
        "rounds": str(rounds),
        "metrics": json.dumps(metrics),
        "config_fingerprint": hashlib.sha256(text.encode()).hexdigest(),
        "facts_fingerprint": identity["fingerprints"]["facts"],
    }
