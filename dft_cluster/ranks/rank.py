"""One rank: everything a process of a group does, one verb at a time. Knows neither Ray nor the order of a round."""

import resource
import socket
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dft_cluster.arithmetic.selection import Bracket, Cut, Tally
from dft_cluster.config import ClusterSettings, ModelSettings, TrainSettings
from dft_cluster.evaluation.decode import Said, forced, greedy
from dft_cluster.facts.layout import Example
from dft_cluster.models.source import resolve
from dft_cluster.models.structure import Parameter
from dft_cluster.patch.folder import Folder
from dft_cluster.runs import parts
from dft_cluster.runs.parts import Part, Stored, Written
from dft_cluster.runs.storage import Storage
from dft_cluster.training.core import Core, Survey
from dft_cluster.training.engine import Engine, FineTune, Place, join, leave
from dft_cluster.training.exchange import Pair
from dft_cluster.training.shards import Fragment


@dataclass(frozen=True)
class Source:
    """Where θ comes from: the user's model, or a folder of the run's storage that stands in for it."""

    model: ModelSettings
    storage: str | None = None
    folder: str = ""


class Rank:
    """A seat in a group's world, with its engine, its half of the core and its part of every checkpoint."""

    def __init__(self, address: str = "127.0.0.1") -> None:
        self._address = address
        self._stack = ExitStack()
        self._scratch = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="dft-")))
        self._progress: tuple[str, int, int, float] = ("start", 0, 0, 0.0)
        self._pair: Pair | None = None
        self._core: Core | None = None

    def where(self) -> tuple[str, int]:
        """This node's address, with a port that is free."""
        with closing(socket.socket()) as probe:
            probe.bind(("", 0))
            return self._address, probe.getsockname()[1]

    def sees(self, uri: str, name: str, word: str) -> bool:
        """Whether this rank reads in the run's storage what the driver wrote there."""
        storage = Storage(uri)
        return storage.exists(name) and storage.read(name).decode() == word

    def build(
        self,
        place: Place,
        source: Source,
        train: TrainSettings,
        cluster: ClusterSettings,
        parameters: Sequence[Parameter],
    ) -> int:
        """Joins the group, builds the engine and loads θ; returns the elements of this rank's shard."""
        self._progress = ("build", 0, 0, 0.0)
        join(place)
        self.parameters = list(parameters)
        self._engine = Engine(self._folder(source), train, place, source.model.trust_remote_code)
        self.load(source)
        kept_on = self._engine.device if cluster.buffers == "device" else torch.device("cpu")
        self._kept_on = kept_on
        return sum(fragment.length for fragment in self._engine.fragments)

    def meet(self, name: str, address: str, port: int, side: int, timeout: float) -> None:
        """Opens the way to the equal rank of the other group."""
        self._pair = Pair(name, address, port, side, timeout)

    def progress(self) -> tuple[str, int, int, float]:
        """(phase, steps done, steps in all, last loss), readable while another verb runs."""
        return self._progress

    def load(self, source: Source) -> None:
        """θ ← a folder's exact values, with a fresh optimizer."""
        self._engine.load(Folder(self._folder(source)), self.parameters)
        self._engine.forget()

    def fine_tune(
        self, examples: Sequence[Example], pad: int, round_: int, phase: str, epochs: int | None = None
    ) -> FineTune:
        """Trains θ in place; goes on with the optimizer as it is."""

        def watch(done: int, total: int, loss: float) -> None:
            self._progress = (phase, done, total, loss)

        self._progress = (phase, 0, 0, 0.0)
        return self._engine.fine_tune(examples, pad, round_, epochs=epochs, watch=watch)

    def keep(self) -> None:
        """Remembers θ at the round's start, with a fresh optimizer."""
        if self._core is None:
            self._core = Core(self._engine.masters, self._engine.fragments, self._kept_on)
        self._core.keep()
        self._engine.forget()

    @property
    def core(self) -> Core:
        assert self._core is not None, "keep() comes first"
        return self._core

    def hold(self) -> None:
        """One group: keeps the old delta here and goes back to the round's start, working weights and all."""
        self.core.hold()
        self.restore_start()

    def restore_start(self) -> None:
        """θ ← the round's start."""
        self.core.back()
        self._engine.push()
        self._engine.forget()

    def send_delta(self) -> None:
        assert self._pair is not None
        self.core.send(self._pair)

    def survey(self, sample: int) -> Survey:
        self._progress = ("select", 0, 0, 0.0)
        return self.core.survey(self._pair, sample)

    def tally(self, brackets: Mapping[int, Bracket], by_tensor: bool) -> dict[int, Tally]:
        return self.core.tally(brackets, by_tensor)

    def ties(self, cuts: Mapping[int, Cut], by_tensor: bool) -> list[tuple[int, int, int]]:
        return self.core.ties(cuts, by_tensor)

    def apply(
        self, cuts: Mapping[int, Cut], quotas: Mapping[tuple[int, int], int], scale: float, by_tensor: bool
    ) -> dict[int, int]:
        """θ ← θ + λ·core in masters and working weights; the other group's rank gets the same bits."""
        kept = self.core.apply(cuts, quotas, scale, by_tensor, self._pair)
        self._engine.push()
        return kept

    def receive_core(self) -> None:
        assert self._pair is not None
        self.core.receive_core(self._pair)
        self._engine.push()

    def write_part(self, uri: str, name: str, sparse: bool) -> Written:
        """This rank's part of the round: the core's elements alone, or all of θ with the optimizer's state."""
        self._progress = ("checkpoint", 0, 0, 0.0)
        engine = self._engine
        marks = self.core.marks() if sparse else None
        moments = None if sparse else engine.moments()
        fragments = [
            Stored(
                f.parameter,
                f.start,
                f.of(engine.masters),
                f.of(marks) if marks else None,
                _remembered(f, moments[f.buffer]) if moments else {},
            )
            for f in engine.fragments
        ]
        with Storage(uri).writer(name) as stream:
            return parts.write(stream, name, fragments)

    def restore(self, source: Source, uri: str, chain: Sequence[Sequence[str]]) -> None:
        """θ ← the source, with the parts of every round in `chain` laid over it, and the optimizer that the last remembers."""
        self.load(source)
        storage, engine = Storage(uri), self._engine
        for names in chain:
            for name in names:
                path = storage.fetch(name, self._scratch)
                self._lay(Part(path))
                if storage.local is None:
                    path.unlink()
        engine.push()

    def _lay(self, part: Part) -> None:
        engine = self._engine
        for f in engine.fragments:
            part.overlay(f.parameter, f.start, f.of(engine.masters))
        step = part.scalar("step")
        if step is None:
            return
        moments = engine.moments()
        for f in engine.fragments:
            moments[f.buffer]["step"].fill_(step)
            for name in ("exp_avg", "exp_avg_sq"):
                part.overlay(f.parameter, f.start, f.of([m[name] for m in moments]), name)

    def round_to(self, dtypes: Mapping[int, torch.dtype]) -> None:
        """θ ← the values that the model's own files can hold, so that live weights and patch agree."""
        engine = self._engine
        for fragment in engine.fragments:
            dtype = dtypes[fragment.parameter]
            if dtype != torch.float32:
                view = fragment.of(engine.masters)
                view.copy_(view.to(dtype))
        engine.push()

    def predict(self, batches: Sequence[Sequence[Example]], pad: int) -> list[list[Said]]:
        """Teacher-forced outcomes, batch by batch."""
        self._progress = ("evaluate", 0, len(batches), 0.0)
        engine, said = self._engine, []
        for number, batch in enumerate(batches):
            said.append(forced(engine.module, batch, pad, engine.device, engine.keeps))
            self._progress = ("evaluate", number + 1, len(batches), 0.0)
        return said

    def generate(
        self, batches: Sequence[Sequence[tuple[int, ...]]], pad: int, most: int, ends: Sequence[int]
    ) -> list[list[tuple[int, ...]]]:
        """Greedy continuations, batch by batch."""
        engine, said = self._engine, []
        together = engine.stage == 3 and engine.place.world > 1
        for number, batch in enumerate(batches):
            self._progress = ("decode", number, len(batches), 0.0)
            said.append(greedy(engine.module, batch, pad, engine.device, most, ends, together))
        return said

    def peak_memory(self) -> int:
        """Bytes: of the accelerator where there is one, else of the process."""
        if self._engine.device.type == "cuda":
            return torch.cuda.max_memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def leave(self) -> None:
        """Leaves the world; the process may then end."""
        self._pair = None
        leave()
        self._stack.close()

    def _folder(self, source: Source) -> Path:
        if source.storage is None:
            return resolve(source.model)
        return Storage(source.storage).fetch(source.folder, self._scratch)


def _remembered(fragment: Fragment, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An optimizer's state of one fragment: its moments, and the step as one number."""
    return {
        name: value.reshape(1) if value.numel() == 1 else value[fragment.offset : fragment.offset + fragment.length]
        for name, value in state.items()
    }
