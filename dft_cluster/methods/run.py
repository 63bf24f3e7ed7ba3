"""A run from its first word to its last: prepare, warm up, measure, round after round, keep the best, leave the patch."""

import secrets
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from dft_cluster.errors import InputError
from dft_cluster.facts.layout import Example
from dft_cluster.facts.pairs import Pair, generated, given
from dft_cluster.methods import finish
from dft_cluster.methods.examine import Examiner
from dft_cluster.methods.job import Job, Outcome, RunFailedError
from dft_cluster.methods.prepare import Prepared
from dft_cluster.methods.stop import kept_round, reached, stop_reason
from dft_cluster.patch.folder import Folder
from dft_cluster.ranks.rank import Rank, Source
from dft_cluster.ranks.team import Team
from dft_cluster.runs.console import Console
from dft_cluster.runs.parts import Written
from dft_cluster.runs.record import Record
from dft_cluster.runs.report import RunData, render
from dft_cluster.runs.track import Tracker

Launch = Callable[[Prepared, Source, Console], AbstractContextManager[Team]]
"""Starts the ranks with θ loaded, and ends them."""


def run(prepared: Prepared, launch: Launch, console: Console) -> dict[str, Any]:
    """Updates the model and returns the result line (also the last of metrics.jsonl)."""
    record = Record(prepared.config)
    for note in prepared.notes:
        console.say(note)
    console.phase("taking the model's fingerprint")
    record.look({**prepared.identity(), "wandb_id": secrets.token_hex(4)})
    if record.result is not None:
        console.say(f"{record.storage.uri} is finished: {record.result['stop_reason']}")
        return record.result
    warm = prepared.config.warmup.epochs > 0 and record.storage.exists("base.json")
    source = _base_source(record) if warm else Source(prepared.config.model)
    with launch(prepared, source, console) as team:
        record.begin()
        try:
            return _Run(prepared, record, team, console, warm).to_the_end()
        except InputError as error:
            raise RunFailedError(str(error)) from error


def _base_source(record: Record) -> Source:
    return Source(record.config.model, record.storage.uri, "base")


class _Run:
    """The state of a run while its ranks live."""

    def __init__(self, prepared: Prepared, record: Record, team: Team, console: Console, warm: bool) -> None:
        self.prepared, self.config, self.record, self.team, self.console = (
            prepared,
            prepared.config,
            record,
            team,
            console,
        )
        self.warm = warm or prepared.config.warmup.epochs == 0
        self.source = _base_source(record) if warm else Source(prepared.config.model)
        self.began = time.perf_counter()
        self.useful = 0.0  # seconds of fine-tuning and evaluation
        self.earlier = max((line.get("at", 0.0) for line in record.rounds), default=0.0)
        self.texts: dict[int, str] = {}
        self.decoded = -1  # the last round whose free answers were asked for in this process

    def to_the_end(self) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="dft-") as scratch:
            self.scratch = Path(scratch)
            return self._to_the_end()

    def _to_the_end(self) -> dict[str, Any]:
        self._prove_shared_folder()
        own = self._warm_up() if not self.warm else None
        pairs = self._pairs()
        layout, facts = self.prepared.layout, self.prepared.facts
        self.job = Job(
            self.config,
            self.prepared.parameters,
            self._examples(pairs, "old"),
            self._examples(pairs, "new"),
            layout.pad,
        )
        self.examiner = Examiner(self.config, facts, pairs, layout)
        self.tracker = Tracker(self.config, self.record.storage, self.record.identity)
        try:
            self._take_up(own)
            while (reason := stop_reason(self.record.rounds, self.config)) is None:
                self._round(self.record.rounds[-1]["round"] + 1)
            return self._end(reason)
        finally:
            self.tracker.close()

    def _prove_shared_folder(self) -> None:
        """Every rank must read in the run's folder what is written here."""
        word = secrets.token_hex(8)
        self.record.storage.make("checkpoints")
        self.record.storage.write("checkpoints/.seen", word.encode())
        seen = self.team.everyone.call(Rank.sees, self.record.storage.uri, "checkpoints/.seen", word)
        if not all(seen):
            raise InputError(
                f"run.dir: {self.config.run.dir} is not the same folder for rank(s) {[i for i, s in enumerate(seen) if not s]} "
                "as for the driver; right would be a shared folder (NFS) or a storage URI such as s3://bucket/runs"
            )

    def _useful(self, work: Callable[[], Any]) -> Any:
        """Counts the seconds of fine-tuning and evaluation apart from all others."""
        began = time.perf_counter()
        result = work()
        self.useful += time.perf_counter() - began
        return result

    def _examples(self, pairs: list[Pair], side: str) -> list[Example]:
        return [self.prepared.layout.example(pair.prompt, getattr(pair, side)) for pair in pairs]

    def _warm_up(self) -> list[list[int]]:
        """Teaches the old answers, which gives the run's base; returns what the user's own model said of the locality probes."""
        epochs = self.config.warmup.epochs
        self.console.phase(f"warm-up: {epochs} epochs on the old answers")
        pairs = given(self.prepared.facts)
        own = self._useful(
            lambda: Examiner(self.config, self.prepared.facts, pairs, self.prepared.layout).locality_said(self.team)
        )
        examples = self._examples(pairs, "old")
        self._useful(
            lambda: self.team.everyone.call(Rank.fine_tune, examples, self.prepared.layout.pad, 0, "warm-up", epochs)
        )
        storage = self.record.storage
        storage.make("checkpoints/warm-up")
        written = self._write_parts("checkpoints/warm-up", sparse=False)
        self.console.phase("writing the warmed model to base/")
        finish.write_base(
            self.prepared.folder, self.prepared.parameters, storage, [p.name for p in written], self.scratch
        )
        storage.remove("checkpoints/warm-up")
        base = f"{storage.local}/base" if storage.local else f"{storage.uri}/base"
        self.record.update_identity(base=base)
        storage.write_json("base.json", {"own": own})
        self.source = _base_source(self.record)
        self.team.everyone.call(Rank.load, self.source)
        return own

    def _write_parts(self, folder: str, *, sparse: bool) -> list[Written]:
        """Every rank that holds the new θ writes its own part."""
        names = [f"{folder}/rank-{i:05d}.safetensors" for i in range(self.team.new.size)]
        return self.team.new.each(Rank.write_part, [(self.record.storage.uri, name, sparse) for name in names])

    def _pairs(self) -> list[Pair]:
        """The training answers; where the model's own sentences are asked for, they are asked once and kept."""
        storage, facts = self.record.storage, self.prepared.facts
        if self.config.facts.old == "given":
            pairs = given(facts)
        elif storage.exists("pairs.json"):
            return [Pair(**pair) for pair in storage.read_json("pairs.json")]
        else:
            self.console.phase("asking the model for its own answers")
            asker = Examiner(self.config, facts, given(facts), self.prepared.layout)
            said = self._useful(
                lambda: asker.sentences(self.team, [f.prompt for f in facts], self.config.evaluate.max_new_tokens)
            )
            pairs = generated(facts, said)
        storage.write_json("pairs.json", [vars(pair) for pair in pairs])
        return pairs

    def _take_up(self, own: list[list[int]] | None) -> None:
        """Goes on where the last finished round stands, or measures round 0."""
        record, storage = self.record, self.record.storage
        finished = record.checkpoints.finished()
        for note in record.checkpoints.notes:
            self.console.say(note)
            record.note(note)
        if storage.exists("baseline.json") and record.rounds:
            self.examiner.remember(storage.read_json("baseline.json"))
            last = finished[-1].number if finished else 0
            record.checkpoints.drop_after(last)
            record.keep_until(last)
            if last:
                self.console.phase(f"resuming after round {last}")
                self.team.everyone.call(Rank.restore, self.source, storage.uri, record.checkpoints.chain(last))
                if record.rounds[-1]["round"] < last:
                    self._tell(
                        last, Outcome(**{k: v for k, v in finished[-1].outcome.items() if k != "tokens_per_second"})
                    )
            return
        record.checkpoints.drop_after(0)
        record.keep_until(-1)
        if own is None and storage.exists("base.json"):
            own = storage.read_json("base.json")["own"]
        self.examiner.own = own or []
        self.console.phase("measuring the model before the first round")
        began = time.perf_counter()
        figures = self._useful(lambda: self.examiner.baseline(self.team))
        storage.write_json("baseline.json", self.examiner.remembered())
        self._add(
            {"round": 0, **figures, "seconds": {"evaluate": time.perf_counter() - began}, "memory": self._memory()}
        )

    def _round(self, number: int) -> None:
        self.console.phase(f"round {number}")
        method, checkpoints = self.prepared.method, self.record.checkpoints
        outcome = method.round(self.team, self.job, number)
        self.useful += outcome.training
        lap = time.perf_counter()
        folder = checkpoints.begin(number)
        parts = self._write_parts(folder, sparse=not method.alone)
        checkpoints.commit(number, parts, alone=method.alone, outcome=outcome.line())
        outcome.seconds["checkpoint"] = time.perf_counter() - lap
        self._tell(number, outcome)

    def _tell(self, number: int, outcome: Outcome) -> None:
        """Measures θ where it is due, and writes the round's line."""
        figures: dict[str, Any] = {}
        if number % self.config.evaluate.every == 0 or number == self.config.method.rounds:
            began = time.perf_counter()
            figures, _ = self._useful(lambda: self.examiner.measure(self.team, decode=False))
            if reached(figures, self.config):
                self.texts = self._useful(lambda: self.examiner.speak(self.team))
                figures |= self.examiner.spoken(self.texts)
                self.decoded, self.measured = number, {"round", *figures}
            outcome.seconds["evaluate"] = time.perf_counter() - began
        self._add({"round": number, **figures, **outcome.line(), "memory": self._memory()})

    def _add(self, line: dict[str, Any]) -> None:
        began = time.perf_counter()
        line["at"] = self.earlier + began - self.began
        self.tracker.round(line)
        line["seconds"]["track"] = time.perf_counter() - began
        self.record.add(line)
        self.console.round(line, self.config.method.rounds)

    def _memory(self) -> dict[str, int]:
        sides = [("old", self.team.old), ("new", self.team.new)] if self.team.paired else [("rank", self.team.everyone)]
        return {f"{name}-{i}": peak for name, group in sides for i, peak in enumerate(group.call(Rank.peak_memory))}

    def _end(self, reason: str) -> dict[str, Any]:
        record, storage = self.record, self.record.storage
        rounds = record.rounds
        kept = kept_round(rounds, self.config)
        line = next(line for line in rounds if line["round"] == kept)
        if kept != rounds[-1]["round"]:
            self.console.phase(f"going back to round {kept}, the best")
            self.team.everyone.call(Rank.restore, self.source, storage.uri, record.checkpoints.chain(kept))
        self.console.phase("making the patch")
        base = storage.fetch("base", self.scratch) if self.source.storage else self.prepared.folder
        patch = finish.make_patch(
            base, self.prepared.parameters, storage, record.checkpoints.chain(kept),
            finish.patch_metadata(self.config, record.identity, kept, line), self.scratch,
        )  # fmt: skip
        final = self._final(line, patch, base)
        elapsed = time.perf_counter() - self.began
        result = {
            "stop_reason": reason,
            "rounds": rounds[-1]["round"],
            "best_round": kept,
            "final": final,
            "seconds": self.earlier + elapsed,
            "overhead": {"seconds": elapsed - self.useful, "share": (elapsed - self.useful) / elapsed},
        }
        self.console.phase("writing the report")
        storage.write_json("answers.json", self.examiner.answers(self.texts))
        report = self._report(result)
        files = {"patch": patch} | ({"report": report} if report else {})
        self.tracker.finish(result, files)
        record.add(result)
        self.console.say(f"stopped: {reason}; kept round {kept}; {storage.uri}")
        return result

    def _final(self, line: dict[str, Any], patch: Path, base: Path) -> dict[str, Any]:
        """What the patch makes of the base, measured: exactly the model that is shipped."""
        files = Folder(base)
        dtypes = {p.index: files.dtype(p.saved) for p in self.prepared.parameters}
        if self.config.run.export:
            self.console.phase("exporting the model")
            finish.export(patch, base, self.record.storage, self.scratch)
            self.team.everyone.call(Rank.load, Source(self.config.model, self.record.storage.uri, "model"))
        elif (
            set(dtypes.values()) == {torch.float32} and self.decoded == self.record.rounds[-1]["round"] == line["round"]
        ):
            # The files hold θ as it is, and this very θ was asked everything a moment ago.
            return {name: line[name] for name in line if name in self.measured}
        else:
            self.team.everyone.call(Rank.round_to, dtypes)
        figures, texts = self._useful(lambda: self.examiner.measure(self.team, decode=True))
        self.texts = texts or self.texts
        return {"round": line["round"], **figures}

    def _report(self, result: dict[str, Any]) -> Path | None:
        storage, record = self.record.storage, self.record
        answers, pairs = storage.read_json("answers.json"), storage.read_json("pairs.json")
        page = render(RunData.from_texts(record.identity, [*record.lines, result], answers, pairs))
        storage.write("report.html", page.encode())
        return storage.local / "report.html" if storage.local else None
