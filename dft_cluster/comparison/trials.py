"""The searches of a comparison: one per model, data set and method, on development facts alone, kept in `search.json`."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from dft_cluster.comparison import reading
from dft_cluster.comparison.running import Runs
from dft_cluster.comparison.search import Measured, Search, TrialFailedError, halve, rule
from dft_cluster.comparison.settings import CompareSettings, SearchSettings, Setting, dotted, laid, sections
from dft_cluster.config_file import validate
from dft_cluster.facts.fact import Fact, fingerprint_of
from dft_cluster.methods.job import RoundRefusedError
from dft_cluster.runs.record import FREE, PLACES, filled

FILE = "search.json"


class Searches:
    """`development` are the only facts known here, by data set: the reported ones cannot be chosen on."""

    def __init__(
        self, settings: CompareSettings, search: SearchSettings, development: Mapping[str, Sequence[Fact]], runs: Runs
    ) -> None:
        self.settings, self.search, self.development, self.runs = settings, search, development, runs
        self.seed = settings.seeds[0]
        self.found = {name: Search() for name, *_ in self._each()}
        self._others: dict[str, dict[str, Any]] = {"development": {}, "searches": {}, "asked": {}}

    def _each(self) -> Iterator[tuple[str, str, str, str]]:
        for model, data, method in product(self.settings.models, self.settings.data, self.search.over):
            yield f"{model}.{data}.{method}", model, data, method

    def take_up(self) -> list[str]:
        """Reads what an earlier start left, and says which searches were begun with another budget or other facts.

        One of which no trial came to anything may be asked for otherwise: what was wrong may have been the asking.
        """
        if not self.runs.room.exists(FILE):
            return []
        kept = self.runs.room.read_json(FILE)
        self._others = {part: kept[part] for part in self._others}
        problems = []
        for name, model, data, method in self._each():
            found = Search.from_json(kept["searches"][name]) if name in kept["searches"] else Search()
            now, before = self._asked(model, data, method), kept["asked"].get(name, {})
            if before:
                before = {**before, "sections": _said(filled(before["sections"]))}
                if before.get("model") and before["model"] == now["model"]:  # the same, wherever it lies by now
                    before["sections"]["model"] |= {"name": now["sections"]["model"]["name"]}
            changed = [key for key in before if before[key] != now[key]]
            if not changed:
                self.found[name] = found
            elif any(not trial.passing for trial in found.trials) or self.runs.room.folders(f"search/{name}"):
                problems.append(
                    f"{self.runs.room.uri}/{FILE}: the search {name} was begun with other {', '.join(changed)}; it cannot go "
                    "on (name another comparison, or change back)"
                )
        return problems

    def to_the_end(self, after_each: Callable[[], Any]) -> None:
        for name, model, data, method in self._each():
            if not self.found[name].ended:
                self.runs.console.say(f"searching settings of {name}")
                self.go_on(model, data, method, self.keep)
                after_each()

    def go_on(self, model: str, data: str, method: str, keep: Callable[[], Any]) -> Search:
        """One search from where it stands to its end; `keep` is called after every trial."""
        bench, found = Bench(self, model, data, method), self.found[f"{model}.{data}.{method}"]
        return halve(self.search, self.search.over[method], self.development[data], bench, found, keep)

    def done(self, model: str, data: str, method: str) -> bool:
        found = self._of(model, data, method)
        return found is None or bool(found.ended)

    def failure(self, model: str, data: str, method: str) -> str:
        """Why a search has not ended."""
        found = self._of(model, data, method)
        lost = [trial for trial in (found.trials if found else []) if trial.passing][-1:]
        return "".join(f"trial {trial.number} failed (start {trial.tries} of it): {trial.reason}" for trial in lost)

    def chosen(self, model: str, data: str, method: str) -> Setting:
        """What the search of this method (or of the one it is `like`) chose; nothing for one that is not searched."""
        found = self._of(model, data, method)
        return (found.chosen or {}) if found else {}

    def _of(self, model: str, data: str, method: str) -> Search | None:
        return self.found.get(f"{model}.{data}.{self.search.like.get(method, method)}")

    def told(self) -> dict[str, Any]:
        return {
            "rule": rule(self.search),
            "share": {"trials": self.search.trials, "device_seconds": self.search.device_seconds},
            "like": self.search.like,
            "development": {
                label: {"facts": len(facts), "ids": [fact.id for fact in facts], "fingerprint": fingerprint_of(facts)}
                for label, facts in self.development.items()
            },
            "searches": {name: found.to_json() for name, found in self.found.items()},
        }

    def _asked(self, model: str, data: str, method: str) -> dict[str, Any]:
        """What a search depends on."""
        config = validate(sections(self.settings, model, data, method))
        return {
            "model": self.runs.known(config.model.name).get("model"),
            "budget": self.search.model_dump(
                mode="json", include={"trials", "device_seconds", "rungs", "reliability", "seed"}
            ),
            "over": self.search.over[method],
            "sections": _said(config.to_json()),
            "seed": self.seed,
            "facts": fingerprint_of(self.development[data]),
            "ids": [fact.id for fact in self.development[data]],
        }

    def keep(self) -> None:
        """What an earlier start searched of other methods, models or data sets stays."""
        told = {**self.told(), "asked": {name: self._asked(*labels) for name, *labels in self._each()}}
        self.runs.room.write_json(
            FILE, {**told, **{part: {**others, **told[part]} for part, others in self._others.items()}}
        )


def _said(tree: Mapping[str, Any]) -> dict[str, Any]:
    """What a config says of a run's outcome. Where the facts lie is no part of it: their fingerprint says what they are."""
    sections = {name: section for name, section in tree.items() if name not in FREE}
    return {**sections, "facts": {k: v for k, v in tree["facts"].items() if k not in PLACES["facts"]}}


class Bench:
    """Measures settings of one method; called with a trial's number, its setting and its facts."""

    def __init__(self, searches: Searches, model: str, data: str, method: str) -> None:
        self.runs, self.seed, self.name = searches.runs, searches.seed, f"{model}.{data}.{method}"
        self.keep = searches.settings.keep
        self.warm = f"{model}.{data}.development"
        self.shared = sections(searches.settings, model, data)
        self.development = searches.development[data]
        # A choice reads teacher-forced figures alone.
        quick = {"evaluate": {"protocols": ["teacher_forced"]}}
        self.tree = laid(sections(searches.settings, model, data, method), quick)

    def __call__(self, number: int, setting: Setting, facts: Sequence[Fact]) -> tuple[Measured, float]:
        began = time.perf_counter()
        tree = laid(self.tree, dotted(setting))
        config = self.runs.config(tree, self.seed, f"search/{self.name}", f"trial-{number:03d}-{len(facts)}", self.warm)
        try:
            self.runs.warm(self.shared, self.seed, self.warm, self.development)
            began = time.perf_counter()  # the warmed model is the same for all methods, and no part of a share
            record = self.runs.run(config, facts)
        except Exception as error:
            # A refused round would be refused again; all else may have been the machines.
            passing = not isinstance(error, RoundRefusedError)
            spent = self.runs.ranks(config) * (time.perf_counter() - began)
            raise TrialFailedError(self.runs.reason(error), spent, passing) from error
        assert record.result is not None
        if self.keep != "all":
            reading.slim(record, "figures")
        # A trial that ended just before a comparison was killed is not run again, but cost what it cost. A covariance, which is
        # measured for the first trial and kept for the others, is no part of a share, like the warmed model.
        covariance = sum(line["seconds"].get("covariance", 0.0) for line in record.rounds)
        seconds = max(time.perf_counter() - began, record.result["seconds"]) - covariance
        measured = {
            line["round"]: {metric: line[metric]["token"] for metric in reading.METRICS if metric in line}
            for line in record.rounds
            if line["round"] > 0 and "reliability" in line
        }
        assert measured, "nothing ends a trial before its first round"
        return measured, seconds * reading.ranks(record.rounds[0])
