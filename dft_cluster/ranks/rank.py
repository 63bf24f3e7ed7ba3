"""One rank: everything a process of a group does, one verb at a time. Knows neither Ray nor the order of a round."""

import gc
import resource
import socket
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dft_cluster.arithmetic.contrast import By, Mask
from dft_cluster.arithmetic.selection import Bracket, Cut, Tally
from dft_cluster.config import Config, ModelSettings
from dft_cluster.evaluation.decode import Said, forced, greedy, sampled
from dft_cluster.facts.layout import Example
from dft_cluster.models.source import resolve
from dft_cluster.models.structure import Parameter
from dft_cluster.patch.folder import Folder
from dft_cluster.ranks import own_part
from dft_cluster.ranks.editing import Editing
from dft_cluster.runs.node_copy import on_this_node
from dft_cluster.runs.parts import Part, Written
from dft_cluster.runs.storage import Storage
from dft_cluster.training.core import Addition, Core, Old, Survey
from dft_cluster.training.engine import Engine, FineTune, Place, join, leave
from dft_cluster.training.exchange import Pair


@dataclass(frozen=True)
class Source:
    """Where θ comes from: the user's model, or a folder of the run's storage that stands in for it."""

    model: ModelSettings
    storage: str | None = None
    folder: str = ""


class Rank(Editing):
    """A seat in a group's world, with its engine, its half of the core and its part of every checkpoint."""

    def __init__(self, address: str = "127.0.0.1") -> None:
        self._address = address
        self._stack = ExitStack()
        self._copies: dict[Source, Path] = {}
        self._progress: tuple[str, int, int, float] = ("start", 0, 0, 0.0)
        self._pair: Pair | None = None
        self._core: Core | None = None
        self._engine: Any = None

    def where(self) -> tuple[str, int]:
        """This node's address, with a port that is free."""
        with closing(socket.socket()) as probe:
            probe.bind(("", 0))
            return self._address, probe.getsockname()[1]

    def multiplies_bf16(self) -> bool:
        """Whether this CPU has instructions for bf16 products."""
        has = torch.cpu.get_capabilities()
        return any(has.get(one, False) for one in ("avx512_bf16", "amx_bf16", "bf16"))

    def sees(self, uri: str, name: str, word: str, answer: str) -> bool:
        """Whether this rank reads in the run's storage what the driver wrote there; it writes the same beside it."""
        storage = Storage(uri)
        if not storage.exists(name) or storage.read(name).decode() != word:
            return False
        storage.write(answer, word.encode())
        return True

    def build(
        self,
        place: Place,
        source: Source,
        config: Config,
        parameters: Sequence[Parameter],
        standing: Sequence[Parameter] = (),
    ) -> int:
        """Joins the group, builds the engine and loads θ; returns the elements of this rank's shard.

        `parameters` are those being updated now; those `standing` are not, though a round before may have changed them.
        """
        self._progress = ("build", 0, 0, 0.0)
        join(place, self._address)
        self.parameters, self._standing = list(parameters), list(standing)
        self._kept_on = torch.device(place.device if config.cluster.buffers == "device" else "cpu")
        self._engine = Engine(
            self._folder(source), config.train, config.lora, place, parameters,
            kept_on=self._kept_on, trust_remote_code=source.model.trust_remote_code,
        )  # fmt: skip
        self._standing_as: Source | None = source
        """Whose values the standing weights have; none where a round or their rounding changed them."""
        self.load(source)
        return sum(fragment.length for fragment in self._engine.fragments)

    def _by_index(self) -> dict[int, Parameter]:
        return {parameter.index: parameter for parameter in self.parameters}

    def meet(self, name: str, address: str, port: int, side: int, timeout: float) -> None:
        """Opens the way to the equal rank of the other group."""
        self._progress = ("meet", 0, 0, 0.0)
        self._pair = Pair(name, address, port, side, timeout)

    def progress(self) -> tuple[str, int, int, float]:
        """(phase, steps done, steps in all, last loss), readable while another verb runs."""
        return self._progress

    def load(self, source: Source) -> None:
        """θ ← a folder's exact values, with a fresh optimizer."""
        files = Folder(self._folder(source))
        self._engine.load(files, self._by_index())
        if source != self._standing_as:
            for parameter in self._standing:
                self._engine.put(parameter, files.flat(parameter.saved, 0, parameter.numel))
            self._standing_as = source
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
        """Remembers θ at the round's start, with a fresh optimizer; what trains next stays as near as `train.within` says."""
        started = self._started()
        started.keep()
        if (within := self._engine.train.within) is not None:
            self._engine.limit_around(started.start, within)
        self._engine.forget()

    def _started(self) -> Core:
        if self._core is None:
            self._core = Core(self._engine.theta, self._kept_on)
        return self._core

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

    def shift(self, scale: float) -> None:
        """θ ← θ + scale·Δ of the last fine-tune, whole; what trains next starts afresh."""
        self.core.shift(scale)
        self._engine.push()
        self._engine.forget()

    def limit(self, source: Source, epsilon: float) -> None:
        """No weight goes further than `epsilon` from its value in the source."""
        self._engine.limit(epsilon, Folder(self._folder(source)), self._by_index())

    def send_delta(self) -> None:
        assert self._pair is not None
        self.core.send(self._pair)

    def survey(self, sample: int, mask: Mask, by: By, seed: int, old: Old) -> Survey:
        self._progress = ("select", 0, 0, 0.0)
        return self.core.survey(self._pair if old != "kept" else None, sample, mask, by, seed, old)

    def tally(self, brackets: Mapping[int, Bracket], by_tensor: bool) -> dict[int, Tally]:
        return self.core.tally(brackets, by_tensor)

    def ties(self, cuts: Mapping[int, Cut], by_tensor: bool) -> list[tuple[int, int, int]]:
        return self.core.ties(cuts, by_tensor)

    def apply(
        self,
        cuts: Mapping[int, Cut],
        quotas: Mapping[tuple[int, int], int],
        by_tensor: bool,
        adding: Addition,
    ) -> dict[int, int]:
        """θ ← θ + λ·core in masters and working weights; the other group's rank gets the same bits."""
        kept = self.core.apply(cuts, quotas, by_tensor, adding, self._pair)
        self._engine.push()
        self._engine.clear()
        return kept

    def rescale(self, ratio: float) -> None:
        """θ of the round's start and ratio times what the core added to it."""
        self.core.rescale(ratio)
        self._engine.push()

    def receive_core(self, every: bool) -> None:
        assert self._pair is not None
        self.core.receive_core(self._pair, every)
        self._engine.push()
        self._engine.clear()

    def broken(self) -> list[int]:
        """The weights of which this rank's share holds NaN or infinity."""
        found: list[int] = self._engine.broken()
        return found

    def write_part(self, uri: str, name: str, sparse: bool, goes_on: bool) -> Written:
        """This rank's part of the round: the core's elements alone, or all of θ, and what training needs to go on with."""
        self._progress = ("checkpoint", 0, 0, 0.0)
        engine = self._engine
        if sparse:
            stored = own_part.of_core(engine, self.core)
        else:
            stored = own_part.of_theta(engine, goes_on, self._core.kept if self._core else [])
        return own_part.write(uri, name, stored)

    def restore(self, source: Source, uri: str, chain: Sequence[Sequence[str]], to_train: bool) -> None:
        """θ ← the source, with the parts of every round in `chain` laid over it; `to_train` with what the last remembers of
        its training (an adapter then lies beside the θ it began with, not within)."""
        self.load(source)
        storage, engine = Storage(uri), self._engine
        beside = to_train and self._engine.train.adapter != "none"
        standing = [own_part.Standing(p, Folder(self._folder(source))) for p in self._standing]
        remembered = False
        for names in chain:
            for name in names:
                with on_this_node(storage, name) as path:
                    part = Part(path)
                    for weight in standing:
                        weight.lay(part)
                    trained = part.scalar("step") is not None
                    if not (beside and trained):
                        for f in engine.fragments:
                            part.overlay(f.parameter, f.start, f.of(engine.masters))
                    if to_train and names is chain[-1] and self._scores and part.remembers("old"):
                        for f in engine.fragments:
                            part.overlay(f.parameter, f.start, f.of(self._started().keep_old()), "old")
                    if to_train and trained:
                        remembered = True
                        self._remember(part)
        for weight in standing:
            if weight.values is not None:
                engine.put(weight.parameter, weight.values)
                self._standing_as = None
        engine.push()
        if remembered:
            engine.go_on()

    def _remember(self, part: Part) -> None:
        """The optimizer's state as a part has it, and the factors of an adapter."""
        trained, moments, step = self._engine.trained, self._engine.moments(), part.scalar("step")
        for f in trained.fragments:
            moments[f.buffer]["step"].fill_(step or 0.0)
            if f.parameter < 0:  # a factor; θ itself has been laid already
                part.overlay(f.parameter, f.start, f.of(trained.masters))
            for name in ("exp_avg", "exp_avg_sq"):
                part.overlay(f.parameter, f.start, f.of([m[name] for m in moments]), name)

    def round_to(self, dtypes: Mapping[int, torch.dtype]) -> None:
        """θ ← the values that the model's own files can hold, so that live weights and patch agree."""
        engine = self._engine
        engine.theta.merge()
        for fragment in engine.fragments:
            dtype = dtypes[fragment.parameter]
            if dtype != torch.float32:
                view = fragment.of(engine.masters)
                view.copy_(view.to(dtype))
        engine.push()
        for parameter in self._standing:
            engine.round_to(parameter, dtypes[parameter.index])
            self._standing_as = None

    def predict(self, batches: Sequence[Sequence[Example]], pad: int) -> list[list[Said]]:
        """Teacher-forced outcomes, batch by batch."""
        self._progress = ("evaluate", 0, len(batches), 0.0)
        engine, said = self._engine, []
        for number, batch in enumerate(batches):
            said.append(forced(engine.module, batch, pad, engine.device))
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
        self._progress = ("decode", len(batches), len(batches), 0.0)
        return said

    def sample(
        self, begun: Sequence[tuple[int, ...]], pad: int, most: int, seed: int, top: int | None, size: int
    ) -> list[tuple[int, ...]]:
        """Texts that the model goes on with, drawn with a seed, `size` at once."""

        def watch(done: int) -> None:
            self._progress = ("draw", done, len(begun), 0.0)

        watch(0)
        engine = self._engine
        return sampled(engine.module, begun, pad, engine.device, most, seed, top, size, watch)

    def peak_memory(self) -> int:
        """Bytes: of the accelerator where there is one, else of the process."""
        if self._engine.device.type == "cuda":
            return torch.cuda.max_memory_allocated()
        return _resident_peak()

    @property
    def _scores(self) -> bool:
        """Whether the deltas meet here: in one group, or on the new side of two."""
        return self._pair is None or self._pair.side == 1

    def leave(self) -> None:
        """Leaves the world; the process may then end."""
        self._pair = self._core = self._opened = None
        engine, self._engine = self._engine, None
        try:
            if engine is not None:
                engine.close()
        finally:
            leave()
            self.tidy()
            del engine
            gc.collect()  # weights and sockets go now, and not some time later

    def tidy(self) -> None:
        """Leaves no file behind on this node."""
        self._stack.close()

    def _folder(self, source: Source) -> Path:
        if source.storage is None:
            return resolve(source.model)
        if source not in self._copies:
            self._copies[source] = self._stack.enter_context(on_this_node(Storage(source.storage), source.folder))
        return self._copies[source]


def _resident_peak() -> int:
    """Bytes of this program at its largest. (Of `ru_maxrss` a part may be that of the process it was started from.)"""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
