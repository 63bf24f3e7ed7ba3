"""A comparison from its first word to its last: choose settings, run every cell that is not finished, write the results.

A cell is an ordinary run in a folder of its own, `cells/<model>.<data>.<method>.<seed>/`: what is finished is not done
again, and what was killed goes on. Nothing here knows Ray: `launch` starts the ranks of each run.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from dft_cluster.comparison import reading, results, writing
from dft_cluster.comparison.results import Cell, Row
from dft_cluster.comparison.running import Runs
from dft_cluster.comparison.settings import CompareSettings, dotted, laid, sections, settings_to_try
from dft_cluster.comparison.split import Split, split
from dft_cluster.comparison.track import track, tracked
from dft_cluster.comparison.trials import Searches
from dft_cluster.config import Config
from dft_cluster.config_file import validate
from dft_cluster.errors import InputError
from dft_cluster.facts.fact import Fact
from dft_cluster.methods.keeping import about, read_prompts
from dft_cluster.methods.prepare import read_facts
from dft_cluster.methods.run import Launch
from dft_cluster.runs.alone import alone
from dft_cluster.runs.console import Console
from dft_cluster.runs.record import Record
from dft_cluster.runs.storage import Storage


def compare(
    settings: CompareSettings, launch: Launch, console: Console, before: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Runs what is missing, if anything is after a call of `before`, and returns what `comparison.json` holds."""
    with tempfile.TemporaryDirectory(prefix="dft-compare-") as scratch:
        return Comparison(settings, launch, console, Path(scratch)).to_the_end(before)


def read_data(settings: CompareSettings) -> dict[str, Split]:
    """Every data set, parted into reported and development facts; all problems in one error."""
    read, problems = {}, []
    # One model and one method speak for all: neither may have facts of its own.
    model, method = next(iter(settings.models)), next(iter(settings.methods))
    for label in settings.data:
        try:
            facts, notes = read_facts(validate(sections(settings, model, label, method)))
            read[label] = (facts, notes, split(facts, settings.report_of(label)).reported)
        except InputError as error:
            problems.append(f"data.{label}: {error}")
    splits = {}
    for label, (facts, notes, _) in read.items():
        elsewhere = [fact for other, (*_, reported) in read.items() if other != label for fact in reported]
        try:
            parted = split(facts, settings.report_of(label), settings.search, elsewhere)
        except InputError as error:
            problems.append(f"data.{label}: {error}")
        else:
            splits[label] = Split(parted.reported, parted.development, [*notes, *parted.notes])
    problems += _kept_of(settings, [fact for *_, reported in read.values() for fact in reported])
    if problems:
        raise InputError("\n".join(problems))
    return splits


def _kept_of(settings: CompareSettings, reported: Sequence[Fact]) -> Iterator[str]:
    """What is wrong with files of prompts to keep: a trial, which knows no reported fact, would train on prompts about it."""
    files: dict[str, str] = {}
    if search := settings.search:
        for model, data, method in product(settings.models, settings.data, search.over):
            for setting in settings_to_try(search, search.over[method]):
                train = validate(laid(sections(settings, model, data, method), dotted(setting))).train
                if train.keep and train.keep_prompts:
                    files.setdefault(train.keep_prompts, f"{model}.{data}.{method}")
    is_about = about(reported)
    for file, place in files.items():
        try:
            there = read_prompts(file)
        except InputError as error:
            yield f"{place}: {error}"
            continue
        if found := list(filter(is_about, there)):
            yield (
                f"{place}: train.keep_prompts: {len(found)} of {len(there)} prompts in {file} are probes of reported facts "
                f"or name one of their subjects, the first: {found[0]!r}; a search would train on them. Right would be a "
                "file without them"
            )


class Comparison:
    """The state of a comparison while it is made."""

    def __init__(self, settings: CompareSettings, launch: Launch, console: Console, scratch: Path) -> None:
        self.settings, self.console, self.scratch = settings, console, scratch
        self.room = Storage(settings.run.dir).below(settings.run.name)
        self.runs = Runs(launch, console, self.room)
        self.splits = read_data(settings)
        development = {label: parted.development for label, parted in self.splits.items()}
        self.searches = Searches(settings, settings.search, development, self.runs) if settings.search else None
        self.rows = {cell: Row(cell) for cell in self._cells()}
        self._compared: dict[Any, tuple[Any, list[Any]]] = {}

    def _cells(self) -> Iterator[Cell]:
        """Seed by seed, so that a half-done comparison has every method."""
        settings = self.settings
        for seed, model, data, method in product(settings.seeds, settings.models, settings.data, settings.methods):
            yield Cell(model, data, method, seed)

    def to_the_end(self, before: Callable[[], None]) -> dict[str, Any]:
        for label, parted in self.splits.items():
            for note in parted.notes:
                self.console.say(f"{label}: {note}")
        self.look()
        ran = any(row.status != "finished" for row in self.rows.values())
        if ran:
            before()
        self.room.make()
        with alone(self.room, self.console.say):
            if ran:
                self.look()  # another one may have been at work here until a moment ago
            return self._go_on(ran)

    def _go_on(self, ran: bool) -> dict[str, Any]:
        if self.searches is not None:
            self.searches.to_the_end(self.write)
        for number, (cell, row) in enumerate(self.rows.items(), 1):
            if row.status == "finished":
                self.console.say(f"cell {number} of {len(self.rows)}: {cell.name} is finished")
            else:
                self.console.say(f"cell {number} of {len(self.rows)}: {cell.name}")
                self.rows[cell] = self.run(cell)
                self.write()
        found = self.write()
        if ran or not tracked(self.room):
            track(self.settings, self.room, found)
        return found

    def look(self) -> None:
        """What is finished already; what was begun with other settings is refused, all of it at once."""
        problems = self.searches.take_up() if self.searches else []
        for cell in self.rows:
            if self.searches is None or self.searches.done(cell.model, cell.data, cell.method):
                try:
                    record = self.runs.finished(self._config(cell), self.splits[cell.data].reported)
                except InputError as error:
                    problems.append(str(error))
                else:
                    self.rows[cell] = self._read(cell, record) if record else Row(cell)
        if problems:
            raise InputError("\n".join(problems))

    def _config(self, cell: Cell) -> Config:
        tree = sections(self.settings, cell.model, cell.data, cell.method)
        if self.searches is not None:
            tree = laid(tree, dotted(self.searches.chosen(cell.model, cell.data, cell.method)))
        return self.runs.config(tree, cell.seed, "cells", cell.name, self._warm_name(cell))

    @staticmethod
    def _warm_name(cell: Cell) -> str:
        return f"{cell.model}.{cell.data}.{cell.seed}"

    def run(self, cell: Cell) -> Row:
        facts, labels = self.splits[cell.data].reported, (cell.model, cell.data, cell.method)
        if self.searches is not None and not self.searches.done(*labels):
            reason = f"its search has not ended: {self.searches.failure(*labels)}"
            self.console.say(f"{cell.name} failed: {reason}")
            return Row(cell, "failed", reason)
        try:
            self.runs.warm(sections(self.settings, cell.model, cell.data), cell.seed, self._warm_name(cell), facts)
            return self._read(cell, self.runs.run(self._config(cell), facts))
        except Exception as error:  # a cell that fails is shown with its reason, and the others go on
            reason = self.runs.reason(error)
            self.console.say(f"{cell.name} failed: {reason}")
            return Row(cell, "failed", reason)

    def _read(self, cell: Cell, record: Record) -> Row:
        assert record.result is not None
        weights = record.identity["fingerprints"]["model"]
        if other := self._other_weights(cell, weights):
            return Row(
                cell,
                "failed",
                f"it began with other weights than {other.cell.name} (fingerprints {weights[:16]}, {other.weights[:16]}): the "
                "model's name has come to stand for another one. Right would be a model.revision, and the folder removed of the "
                "run that is not wanted",
            )
        cost = reading.costs(record, self.scratch)
        reading.slim(record, self.settings.keep)
        points = reading.trajectory(record.rounds, self.settings.on)
        told = record.result
        by_round = reading.outcomes_by_round(record, [point.round for point in points if point.round])
        outcomes = reading.outcomes(record)
        equipment = reading.equipment(record)
        return Row(
            cell, "finished", told["stop_reason"], told["final"], cost, points, outcomes, by_round, weights, equipment
        )

    def _other_weights(self, cell: Cell, weights: str) -> Row | None:
        """A finished cell that had to begin with the same, those of the model or those of one warm-up, and did not."""
        warms = self.runs.warms(sections(self.settings, cell.model, cell.data))
        for row in self.rows.values():
            alike = self._warm_name(row.cell) == self._warm_name(cell) if warms else row.cell.model == cell.model
            if row.finished and alike and row.weights != weights:
                return row
        return None

    def write(self) -> dict[str, Any]:
        told = self.searches.told() if self.searches else {}
        found = results.gather(self.settings, self.splits, list(self.rows.values()), told, self._compared)
        writing.write(self.room, found)
        return found
