"""A run from its first word to its last: warm up, measure, round after round, back to the one to keep, leave the patch."""

import secrets
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dft_cluster.errors import InputError
from dft_cluster.facts.pairs import Pair, generated, given
from dft_cluster.methods import finish
from dft_cluster.methods.examine import Examiner
from dft_cluster.methods.job import THETA, Holds, Outcome, RunFailedError
from dft_cluster.methods.prepare import Prepared
from dft_cluster.methods.stop import kept_round, reached, stop_reason
from dft_cluster.methods.training_set import Drawn, drawn_once, examples
from dft_cluster.patch.folder import Folder
from dft_cluster.ranks.rank import Rank, Source
from dft_cluster.ranks.shared import blind
from dft_cluster.ranks.team import LostRankError, Team
from dft_cluster.runs.console import Console
from dft_cluster.runs.parts import Written
from dft_cluster.runs.record import Record
from dft_cluster.runs.report import RunData, render
from dft_cluster.runs.track import Tracker

Launch = Callable[[Prepared, Source, Console], AbstractContextManager[Team]]
"""Starts the ranks with θ loaded, and ends them."""


def run(prepared: Prepared, launch: Launch, console: Console) -> dict[str, Any]:
    """Updates the model and returns the result line (also the last of metrics.jsonl)."""
    record = _open(prepared, console)
    if record.result is not None:
        console.say(f"{record.storage.uri} is finished: {record.result['stop_reason']}")
        return record.result
    with _Run(prepared, record, console) as going:
        going.go_on(launch, until=lambda: going.result is not None)
        assert going.result is not None
        return going.result


def warmed(prepared: Prepared, launch: Launch, console: Console) -> str:
    """The run's base after its warm-up alone: the folder (or URI) that the method would begin with."""
    with _Run(prepared, _open(prepared, console), console) as going:
        going.go_on(launch, until=lambda: going.next != WARM_UP, rounds=False)
        return going.base


def _open(prepared: Prepared, console: Console) -> Record:
    record = Record(prepared.config)
    for note in prepared.notes:
        console.say(note)
    console.phase("taking the model's fingerprint")
    record.look({**prepared.identity(), "wandb_id": secrets.token_hex(4)})
    return record


WARM_UP = 0
GIVEN = ("gpus_per_rank", "cpus_per_rank", "threads")
"""Settings of `cluster` that may be left to the cluster, and are then kept in config.json."""


class _Run:
    """The state of a run: one team of ranks after another, each for as many rounds as it is built for."""

    def __init__(self, prepared: Prepared, record: Record, console: Console) -> None:
        self.prepared, self.config, self.record, self.console = prepared, prepared.config, record, console
        self.result: dict[str, Any] | None = None
        self.began = time.perf_counter()
        self.useful = 0.0  # seconds of fine-tuning and evaluation
        self.earlier = self._until_now()
        self.texts: dict[int, str] = {}
        self.drawing = 0.0  # seconds that the model's own texts took, which the first round answers for
        self.decoded = -1  # the last round whose free answers were asked for in this process
        self.tracker: Tracker | None = None

    def __enter__(self) -> "_Run":
        self._scratch = tempfile.TemporaryDirectory(prefix="dft-")
        self.scratch = Path(self._scratch.name)
        return self

    def __exit__(self, *_: object) -> None:
        if self.tracker is not None:
            self.tracker.close()
        self._scratch.cleanup()

    @property
    def warm(self) -> bool:
        return self.config.warmup.epochs > 0 and self.record.storage.exists("base.json")

    @property
    def next(self) -> int:
        """What comes next: the warm-up, or the round after the last that is finished."""
        if self.config.warmup.epochs > 0 and not self.warm:
            return WARM_UP
        return max(self.record.checkpoints.numbers(), default=0) + 1

    @property
    def source(self) -> Source:
        """What the next round's θ is laid over."""
        if self.warm:
            return Source(self.config.model, self.record.storage.uri, "base")
        return Source(self.config.model)

    @property
    def base(self) -> str:
        """Where the warmed model is or will be."""
        storage = self.record.storage
        return f"{storage.local}/base" if storage.local else f"{storage.uri}/base"

    def go_on(self, launch: Launch, *, until: Callable[[], bool], rounds: bool = True) -> None:
        """One team after another; those that are lost are followed by new ones."""
        failures: list[str] = []
        while not until():
            before = self.next
            try:
                self.serve(launch, rounds=rounds)
            except LostRankError as lost:
                # A finished round between two failures shows that the run can be saved.
                failures = [*(failures if self.next == before else []), str(lost)]
                self._remember(lost.given)
                self.lost(failures, lost)
            except InputError as error:
                if not failures:
                    raise
                # Asked for when the run began, and granted: it is the cluster that has changed.
                raise RunFailedError(f"after {'; '.join(failures)}: {error}") from error

    def serve(self, launch: Launch, *, rounds: bool) -> None:
        """One team: the warm-up where it is due, then rounds up to the end, or to one that needs other ranks."""
        seat = self._on_what_it_began(self.prepared.seat(min(self.next, self.config.method.rounds)))
        source = self.source
        with launch(seat, source, self.console) as self.team:
            try:
                if not self.record.begun:
                    self._look_again()
                    if self.result is not None:
                        return
                self._remember(self.team.given)
                self.record.begin()
                for note in self.team.notes:
                    self.console.say(note)
                    self.record.note(note)
                self._prove_shared_folder()
                if self.next == WARM_UP:
                    self._warm_up()
                if not rounds or self._other_than(seat, self.next):
                    return
                if self.source != source:
                    self.team.everyone.call(Rank.load, self.source)
                self._rounds(seat)
            except InputError as error:
                raise RunFailedError(str(error)) from error

    def _look_again(self) -> None:
        """The folder is this driver's alone from now on; until a moment ago another one may have been at work in it."""
        self.record.look_again()
        self.earlier = self._until_now()
        self.result = self.record.result

    def _until_now(self) -> float:
        """Seconds that drivers before this one were at work."""
        return max((line.get("at", 0.0) for line in self.record.rounds), default=0.0)

    def _on_what_it_began(self, seat: Prepared) -> Prepared:
        """What the cluster gave when the run began it has again, unless the config says otherwise: as many threads, for the same
        bits, and GPUs, which are waited for (or the run is refused), for it would never end on CPUs."""
        cluster, known = seat.config.cluster, self.record.identity
        again = {key: known[key] for key in GIVEN if getattr(cluster, key) is None and key in known}
        update = {"cluster": cluster.model_copy(update=again)}
        return replace(seat, config=seat.config.model_copy(update=update))

    def _remember(self, given: Mapping[str, float]) -> None:
        """What it was given first: a later start may have asked for something else, for itself."""
        for key, value in given.items():
            self.record.identity.setdefault(key, value)

    def lost(self, failures: list[str], last: LostRankError) -> None:
        """Ranks are gone: says so, and lets new ones go on from the last finished round, unless that has failed too often."""
        most = self.config.cluster.max_failures
        if len(failures) > most:
            listed = "; ".join(f"{number}. {failure}" for number, failure in enumerate(failures, 1))
            raise RunFailedError(
                f"{len(failures)} failures in a row with no finished round between (cluster.max_failures={most}): {listed}"
            ) from last
        where = f"round {self.next - 1}" if self.next > 1 else "the beginning"
        self.console.say(f"{last}; starting new ranks, which go on from {where}")
        self.record.note(f"{last}; new ranks went on from {where}")

    def _other_than(self, seat: Prepared, number: int) -> bool:
        """Whether a round needs ranks that are built otherwise."""
        return self.prepared.seat(min(number, self.config.method.rounds)).needs() != seat.needs()

    def _rounds(self, seat: Prepared) -> None:
        pairs = self._pairs()
        layout, facts = self.prepared.layout, self.prepared.facts
        self.examiner = Examiner(self.config, facts, pairs, layout)
        drawn = self._useful(lambda: drawn_once(self.prepared, self.team, pairs, self.record, self.console))
        self.drawing = drawn.seconds
        self.job = replace(
            seat.job(self.source),
            old=examples(pairs, "old", layout, drawn),
            new=examples(pairs, "new", layout, drawn),
            say=self.console.say,
            says_now=lambda team: examples(self.examiner.said_now(team), "old", layout, drawn),
            right=self.examiner.right,
        )
        self.tracker = self.tracker or Tracker(self.config, self.record.storage, self.record.identity)
        self._take_up()
        while (reason := stop_reason(self.record.rounds, self.config)) is None:
            number = self.record.rounds[-1]["round"] + 1
            if self._other_than(seat, number):
                return
            self._round(number)
        self.result = self._end(reason)

    def _prove_shared_folder(self) -> None:
        self.record.storage.make("checkpoints")
        if unseen := blind(self.team.everyone, self.record.storage):
            raise InputError(
                f"run.dir: {self.config.run.dir} is not the same folder for rank(s) {unseen} as for the driver; right would be a "
                "shared folder (NFS) or a storage URI such as s3://bucket/runs"
            )

    def _useful(self, work: Callable[[], Any]) -> Any:
        """Counts the seconds of fine-tuning and evaluation apart from all others."""
        began = time.perf_counter()
        result = work()
        self.useful += time.perf_counter() - began
        return result

    def _warm_up(self) -> None:
        """Teaches the old answers, which gives the run's base; keeps what the user's own model said of the locality probes."""
        epochs = self.config.warmup.epochs
        self.console.phase(f"warm-up: {epochs} epochs on the old answers")
        pairs = given(self.prepared.facts)
        own = self._useful(
            lambda: Examiner(self.config, self.prepared.facts, pairs, self.prepared.layout).locality_said(self.team)
        )
        taught = examples(pairs, "old", self.prepared.layout, Drawn())
        self._useful(
            lambda: self.team.everyone.call(Rank.fine_tune, taught, self.prepared.layout.pad, 0, "warm-up", epochs)
        )
        storage = self.record.storage
        storage.make("checkpoints/warm-up")
        written = self._write_parts("checkpoints/warm-up", THETA)
        self.console.phase("writing the warmed model to base/")
        finish.write_base(
            self.prepared.folder, self.prepared.parameters, storage, [p.name for p in written], self.scratch
        )
        storage.remove("checkpoints/warm-up")
        self.record.update_identity(base=self.base)
        storage.write_json("base.json", {"own": own})

    def _write_parts(self, folder: str, holds: Holds) -> list[Written]:
        """Every rank that holds the new θ writes its own part."""
        names = [f"{folder}/rank-{i:05d}.safetensors" for i in range(self.team.new.size)]
        uri = self.record.storage.uri
        return self.team.new.each(Rank.write_part, [(uri, name, holds.sparse, holds.goes_on) for name in names])

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

    def _take_up(self) -> None:
        """Goes on where the last finished round stands, or measures round 0."""
        record, storage = self.record, self.record.storage
        finished = record.checkpoints.finished()
        for note in record.checkpoints.notes:
            self.console.say(note)
            record.note(note)
        if storage.exists("baseline.json") and record.rounds:
            self.examiner.remember(storage.read_json("baseline.json"))
            last = finished[-1].number if finished else 0
            self._begin_after(last)
            if last:
                self.console.phase(f"resuming after round {last}")
                self.team.everyone.call(Rank.restore, self.source, storage.uri, record.checkpoints.chain(last), True)
                if record.rounds[-1]["round"] < last:
                    self._tell(
                        last, Outcome(**{k: v for k, v in finished[-1].outcome.items() if k != "tokens_per_second"})
                    )
            return
        self._begin_after(-1)
        self.examiner.own = storage.read_json("base.json")["own"] if self.warm else []
        self.console.phase("measuring the model before the first round")
        began = time.perf_counter()
        figures = self._useful(lambda: self.examiner.baseline(self.team))
        storage.write_json("baseline.json", self.examiner.remembered())
        self._add(
            {"round": 0, **figures, "seconds": {"evaluate": time.perf_counter() - began}, "memory": self._memory()}
        )

    def _begin_after(self, number: int) -> None:
        """What comes after this round, or all of it with -1, will be done again."""
        aside = self.record.checkpoints.set_aside(max(0, number))
        self.record.keep_until(number)
        if aside:
            note = f"finished rounds that are done again are kept in {', '.join(aside)}"
            self.console.say(note)
            self.record.note(note)

    def _round(self, number: int) -> None:
        self.console.phase(f"round {number}")
        method, checkpoints = self.prepared.method, self.record.checkpoints
        outcome = method.round(self.team, self.job, number)
        self.useful += outcome.training
        if number == 1 and self.drawing:
            outcome.seconds["draw"] = outcome.seconds.get("draw", 0.0) + self.drawing
        lap = time.perf_counter()
        folder = checkpoints.begin(number)
        parts = self._write_parts(folder, outcome.holds)
        checkpoints.commit(number, parts, alone=outcome.holds.alone, outcome=outcome.line())
        outcome.seconds["checkpoint"] = time.perf_counter() - lap
        self._tell(number, outcome)

    def _tell(self, number: int, outcome: Outcome) -> None:
        """Measures θ where it is due, and writes the round's line."""
        figures: dict[str, Any] = {}
        if number % self.config.evaluate.every == 0 or number == self.config.method.rounds:
            began = time.perf_counter()
            figures, _ = self._useful(lambda: self.examiner.measure(self.team, decode=False))
            self._keep_scores(f"round-{number:04d}")
            if reached(figures, self.config):
                self.texts = self._useful(lambda: self.examiner.speak(self.team))
                figures |= self.examiner.spoken(self.texts)
                self.decoded, self.measured = number, {"round", *figures}
            outcome.seconds["evaluate"] = time.perf_counter() - began
        self._add({"round": number, **figures, **outcome.line(), "memory": self._memory()})

    def _keep_scores(self, name: str) -> None:
        """What was measured last, fact by fact: for statistics over facts."""
        self.record.storage.make("scores")
        self.record.storage.write_json(f"scores/{name}.json", self.examiner.by_fact())

    def _add(self, line: dict[str, Any]) -> None:
        began = time.perf_counter()
        line["at"] = self.earlier + began - self.began
        assert self.tracker is not None
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
            self.console.phase(f"going back to round {kept}, the one to keep")
            self.team.everyone.call(Rank.restore, self.source, storage.uri, record.checkpoints.chain(kept), False)
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
        assert self.tracker is not None
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
            set(dtypes.values()) == {torch.float32}
            and self.job.config.train.adapter == "none"
            and self.decoded == self.record.rounds[-1]["round"] == line["round"]
        ):
            # The files hold θ as it is, and this very θ was asked everything a moment ago (an adapter is yet to be merged).
            self._keep_scores("final")
            return {name: line[name] for name in line if name in self.measured}
        else:
            self.team.everyone.call(Rank.round_to, dtypes)
        figures, texts = self._useful(lambda: self.examiner.measure(self.team, decode=True))
        self.texts = texts or self.texts
        self._keep_scores("final")
        return {"round": line["round"], **figures}

    def _report(self, result: dict[str, Any]) -> Path | None:
        storage, record = self.record.storage, self.record
        answers, pairs = storage.read_json("answers.json"), storage.read_json("pairs.json")
        page = render(RunData.from_texts(record.identity, [*record.lines, result], answers, pairs))
        storage.write("report.html", page.encode())
        return storage.local / "report.html" if storage.local else None
