"""A run's rounds on one team of ranks: measure θ, change it, write it down, measure it again."""

import time
from dataclasses import replace
from typing import Any

from dft_cluster.combinations import FIRST_TO_LEARN
from dft_cluster.methods.examine import Examiner
from dft_cluster.methods.job import Outcome, RoundRefusedError, refuse_broken_weights
from dft_cluster.methods.prepare import Prepared
from dft_cluster.methods.progress import Progress
from dft_cluster.methods.stop import reached, stop_reason
from dft_cluster.methods.training_set import drawn_once, examples, pairs_once, said_now
from dft_cluster.ranks.rank import Rank
from dft_cluster.ranks.shared import write_parts
from dft_cluster.ranks.team import Team


class Rounds:
    """Runs rounds on one team, until the end or until a round needs other ranks. What must outlive the team is in `progress`."""

    def __init__(self, progress: Progress, team: Team, seat: Prepared) -> None:
        self.progress, self.team, self.seat = progress, team, seat
        self.config, self.console = progress.config, progress.console
        self.record, self.storage = progress.record, progress.storage
        self.texts: dict[int, str] = {}
        """What the model said when it was last asked to speak."""
        self.spoke: tuple[int, set[str]] = (-1, set())
        """The last round that was measured and spoke, for it had reached the target; and the names of its figures."""

    def go_on(self) -> str | None:
        """Round after round from the last finished one: why the run ends, or None where the next needs other ranks."""
        self._prepare()
        self._take_up()
        while (reason := stop_reason(self.record.rounds, self.config)) is None:
            number = self.record.rounds[-1]["round"] + 1
            if self.progress.needs_others(self.seat, number):
                return None
            try:
                self._round(number)
            except RoundRefusedError as error:
                if number <= FIRST_TO_LEARN.get(self.config.method.name, 1):
                    raise
                self._back_to(number - 1)
                return str(error)
        return reason

    def _back_to(self, number: int) -> None:
        """θ of a finished round: what was learnt until then is not lost with the round that came after it."""
        self.console.phase(f"going back to round {number}")
        chain = self.record.checkpoints.chain(number)
        self.team.everyone.call(Rank.restore, self.progress.source, self.storage.uri, chain, False)

    def _prepare(self) -> None:
        """What is taught and what is asked; W&B."""
        progress, prepared = self.progress, self.progress.prepared
        layout = prepared.layout
        pairs = progress.counted(lambda: pairs_once(prepared, self.team, self.record, self.console))
        drawn = progress.counted(lambda: drawn_once(prepared, self.team, pairs, self.record, self.console))
        self._drawing = drawn.seconds  # the first round answers for them
        self.examiner = examiner = Examiner(self.config, prepared.facts, pairs, layout)
        self.job = replace(
            self.seat.job(progress.source),
            old=examples(pairs, "old", layout, drawn),
            new=examples(pairs, "new", layout, drawn),
            forgotten=examples(pairs, "old", layout, replace(drawn, keep=())),
            say=self.console.say,
            note=progress.say_and_note,
            says_now=lambda team: said_now(examiner, team, drawn),
            right=examiner.right,
        )
        progress.track()

    def _take_up(self) -> None:
        """Goes on where the last finished round stands, or measures round 0."""
        record, storage = self.record, self.storage
        finished = record.checkpoints.finished()
        for note in record.checkpoints.notes:
            self.progress.say_and_note(note)
        if not (storage.exists("baseline.json") and record.rounds):
            self._measure_first()
            return
        self.examiner.remember(storage.read_json("baseline.json"))
        last = finished[-1].number if finished else 0
        self._forget_after(last)
        if last:
            self.console.phase(f"resuming after round {last}")
            chain = record.checkpoints.chain(last)
            self.team.everyone.call(Rank.restore, self.progress.source, storage.uri, chain, True)
            if record.rounds[-1]["round"] < last:
                outcome = {key: value for key, value in finished[-1].outcome.items() if key != "tokens_per_second"}
                self._tell(last, Outcome(**outcome))

    def _measure_first(self) -> None:
        """Measures round 0."""
        self._forget_after(-1)
        self.examiner.own = self.storage.read_json("base.json")["own"] if self.progress.warm else []
        self.console.phase("measuring the model before the first round")
        began = time.perf_counter()
        figures = self.progress.counted(lambda: self.examiner.baseline(self.team))
        self.storage.write_json("baseline.json", self.examiner.remembered())
        self._add(
            {"round": 0, **figures, "seconds": {"evaluate": time.perf_counter() - began}, "memory": self._memory()}
        )

    def _forget_after(self, number: int) -> None:
        """What comes after this round, or all of it with -1, will be done again."""
        aside = self.record.checkpoints.set_aside(max(0, number))
        self.record.keep_until(number)
        if aside:
            self.progress.say_and_note(f"finished rounds that are done again are kept in {', '.join(aside)}")

    def _round(self, number: int) -> None:
        self.console.phase(f"round {number}")
        checkpoints = self.record.checkpoints
        outcome = self.progress.prepared.method.round(self.team, self.job, number)
        refuse_broken_weights(self.team, self.job.parameters, number)
        self.progress.useful_seconds += outcome.training
        if number == 1 and self._drawing:
            outcome.seconds["draw"] = outcome.seconds.get("draw", 0.0) + self._drawing
        lap = time.perf_counter()
        folder, holds = checkpoints.begin(number), outcome.holds
        parts = write_parts(self.team.new, self.storage, folder, sparse=holds.sparse, goes_on=holds.goes_on)
        checkpoints.commit(number, parts, alone=holds.alone, outcome=outcome.line())
        outcome.seconds["checkpoint"] = time.perf_counter() - lap
        self._tell(number, outcome)

    def _tell(self, number: int, outcome: Outcome) -> None:
        """Measures θ where it is due, and writes the round's line."""
        figures: dict[str, Any] = {}
        if number % self.config.evaluate.every == 0 or number == self.config.method.rounds:
            began = time.perf_counter()
            figures, _ = self.progress.counted(lambda: self.examiner.measure(self.team, decode=False))
            self.keep_scores(f"round-{number:04d}")
            if reached(figures, self.config):
                self.texts = self.progress.counted(lambda: self.examiner.speak(self.team))
                figures |= self.examiner.spoken(self.texts)
                self.spoke = number, {"round", *figures}
            outcome.seconds["evaluate"] = time.perf_counter() - began
        self._add({"round": number, **figures, **outcome.line(), "memory": self._memory()})

    def keep_scores(self, name: str) -> None:
        """What was measured last, fact by fact: for statistics over facts."""
        self.storage.make("scores")
        self.storage.write_json(f"scores/{name}.json", self.examiner.by_fact())

    def _add(self, line: dict[str, Any]) -> None:
        line["at"] = self.progress.earlier + self.progress.elapsed()
        began = time.perf_counter()
        self.progress.track().round(line)
        line["seconds"]["track"] = time.perf_counter() - began
        self.record.add(line)
        self.console.round(line, self.config.method.rounds)

    def _memory(self) -> dict[str, int]:
        sides = [("old", self.team.old), ("new", self.team.new)] if self.team.paired else [("rank", self.team.everyone)]
        return {f"{name}-{i}": peak for name, group in sides for i, peak in enumerate(group.call(Rank.peak_memory))}
