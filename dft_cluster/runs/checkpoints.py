"""Finished rounds: parts written by every rank, and a manifest written last, which makes them count."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pyarrow import ArrowInvalid

from dft_cluster.runs.parts import Written
from dft_cluster.runs.patience import patiently
from dft_cluster.runs.storage import Storage

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Finished:
    """A round whose manifest stands and whose parts have the sizes and checksums it names."""

    number: int
    parts: list[Written]
    alone: bool
    """Whether the parts hold all of θ; else only what changed since the round before."""
    outcome: dict[str, Any]


class Checkpoints:
    """The folder `checkpoints/` of a run."""

    def __init__(self, run: Storage) -> None:
        self.run = run
        self.notes: list[str] = []

    def folder(self, number: int) -> str:
        return f"checkpoints/round-{number:04d}"

    def begin(self, number: int) -> str:
        """A clean folder for the parts of a round."""
        self.run.remove(self.folder(number))
        self.run.make(self.folder(number))
        return self.folder(number)

    def commit(self, number: int, parts: Sequence[Written], *, alone: bool, outcome: dict[str, Any]) -> None:
        """From here on the round counts."""
        manifest = {
            "round": number,
            "alone": alone,
            "parts": [{"name": p.name, "size": p.size, "sha256": p.sha256} for p in parts],
            "outcome": outcome,
        }
        self.run.write_json(f"{self.folder(number)}/{MANIFEST}", manifest)

    def finished(self) -> list[Finished]:
        """The rounds that count, from the first on: up to a gap or the first that is damaged (said in `notes`)."""
        found: list[Finished] = []
        for number in range(1, 1 + len(self.run.folders("checkpoints")) + 1):
            one = self._read(number)
            if isinstance(one, str):
                note = f"the checkpoint of round {number} is left aside: {one}; round {number - 1} is used"
                if self.run.exists(self.folder(number)) and note not in self.notes:
                    self.notes.append(note)
                break
            found.append(one)
        return found

    def _read(self, number: int) -> Finished | str:
        """The round, or what is wrong with it."""
        name = f"{self.folder(number)}/{MANIFEST}"
        if not self.run.exists(name):
            return "it was never finished"
        try:
            manifest = self.run.read_json(name)
            parts = [Written(p["name"], p["size"], p["sha256"]) for p in manifest["parts"]]
            finished = Finished(manifest["round"], parts, manifest["alone"], manifest["outcome"])
        except (ValueError, KeyError, TypeError, ArrowInvalid) as error:
            return f"its manifest cannot be read ({error!r})"
        if finished.number != number or not parts:
            return f"its manifest is that of round {finished.number} with {len(parts)} parts"
        if strange := [
            part.name for part in parts if not re.fullmatch(rf"{self.folder(number)}/[\w-]+\.safetensors", part.name)
        ]:
            return f"its manifest names {strange[0]!r}, which is no part of it"
        for part in parts:
            size = self.run.size(part.name)
            if size != part.size:
                return f"{part.name} has {size} bytes where {part.size} were written"
            if self._digest(part.name) != part.sha256:
                return f"{part.name} does not have the content that was written"
        return finished

    @patiently
    def _digest(self, name: str) -> str:
        digest = hashlib.sha256()
        with self.run.system.open_input_stream(self.run.path(name)) as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
        return digest.hexdigest()

    def numbers(self) -> list[int]:
        """The rounds whose manifest stands (`finished` looks at their content too)."""
        return [
            n
            for n in range(1, len(self.run.folders("checkpoints")) + 1)
            if self.run.exists(f"{self.folder(n)}/{MANIFEST}")
        ]

    def chain(self, number: int) -> list[list[str]]:
        """The parts that, laid over θ of round 0 in this order, give θ of a round; each entry is one round's."""
        chain: list[list[str]] = []
        for one in range(number, 0, -1):
            manifest = self.run.read_json(f"{self.folder(one)}/{MANIFEST}")
            chain.insert(0, [part["name"] for part in manifest["parts"]])
            if manifest["alone"]:
                break
        return chain

    def set_aside(self, number: int) -> list[str]:
        """Clears the way for rounds after this one, which will be done again. Those whose manifest stands are kept elsewhere: the
        folders that hold them now."""
        kept = []
        there = self.run.folders("checkpoints")
        for folder in there:
            if not folder.startswith("round-") or int(folder.removeprefix("round-")) <= number:
                continue
            if self.run.exists(f"checkpoints/{folder}/{MANIFEST}"):
                before = [int(one.rpartition("-")[2]) for one in there if one.startswith(f"aside-{folder}-")]
                kept.append(f"checkpoints/aside-{folder}-{max(before, default=0) + 1}")
                self.run.move(f"checkpoints/{folder}", kept[-1])
            else:
                self.run.remove(f"checkpoints/{folder}")
        return kept
