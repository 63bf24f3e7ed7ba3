"""Runs of a comparison, each an ordinary one in its own folder; and the warmed models that several of them start from."""

import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dft_cluster.comparison import reading
from dft_cluster.comparison.settings import config_of
from dft_cluster.config import Config, WarmupSettings
from dft_cluster.errors import InputError
from dft_cluster.facts.fact import Fact, fingerprint_of
from dft_cluster.methods import run as runs
from dft_cluster.methods.job import RunFailedError
from dft_cluster.methods.prepare import prepare
from dft_cluster.methods.run import Launch
from dft_cluster.patch.fingerprint import fingerprint
from dft_cluster.runs.console import Console
from dft_cluster.runs.record import Record
from dft_cluster.runs.storage import Storage


class Runs:
    """Starts runs below one folder. It holds no facts: they come with each run."""

    def __init__(self, launch: Launch, console: Console, room: Storage) -> None:
        self.launch, self.console, self.room = launch, console, room
        self._lost: dict[str, Exception] = {}
        self._fingerprints: dict[str, str] = {}

    def config(self, tree: Mapping[str, Any], seed: int, folder: str, name: str, warm: str) -> Config:
        """The config of a run in `folder`/`name` that starts from the warmed model `warm`, where there is a warm-up."""
        return config_of(tree, seed, self.room.below(folder).uri, name, self._base(tree, warm))

    def run(self, config: Config, facts: Sequence[Fact]) -> Record:
        runs.run(prepare(config, facts), self.launch, self.console)
        record = self.finished(config, facts)
        assert record is not None
        return record

    def finished(self, config: Config, facts: Sequence[Fact]) -> Record | None:
        """The run of this config, if it has ended; refused where its folder holds another one."""
        record = Record(config)
        record.look({"fingerprints": {"facts": fingerprint_of(facts), **self.known(config.model.name)}})
        return record if record.result is not None else None

    def ranks(self, config: Config) -> int:
        """Those of a run that came to nothing: which its first line tells, or else as many as it asked for."""
        lines = Record(config).read_lines()
        return reading.ranks(lines[0]) if lines else config.world

    def known(self, model: str) -> dict[str, str]:
        """The fingerprint of a model that is a folder: it may have come from elsewhere, with the folder of the comparison."""
        if model not in self._fingerprints and Path(model, "config.json").is_file():
            self.console.phase("taking the model's fingerprint")
            self._fingerprints[model] = fingerprint(model)
        return {"model": self._fingerprints[model]} if model in self._fingerprints else {}

    def warm(self, tree: Mapping[str, Any], seed: int, name: str, facts: Sequence[Fact]) -> None:
        """Teaches the old answers once, for all methods. A warm-up that failed is not tried again in this start."""
        base = self._base(tree, name)
        if base is None:
            return
        if name in self._lost:
            raise self._lost[name]
        # Plain fine-tuning takes all ranks as one group, and bounds no delta; what is measured here nobody reads.
        train = {key: value for key, value in tree.get("train", {}).items() if key != "within"}
        plain = {**tree, "method": {"name": "full", "rounds": 1}, "train": train}
        try:
            made = runs.warmed(
                prepare(config_of(plain, seed, self.room.below("warm").uri, name), facts), self.launch, self.console
            )
        except Exception as error:
            self._lost[name] = error
            raise
        assert made == base

    @staticmethod
    def warms(tree: Mapping[str, Any]) -> bool:
        """Whether runs of these sections start from a warmed model. Without a method they need be no whole config."""
        return WarmupSettings.model_validate(tree.get("warmup", {})).epochs > 0

    def _base(self, tree: Mapping[str, Any], name: str) -> str | None:
        """Where a warmed model is or will be; None without a warm-up."""
        if not self.warms(tree):
            return None
        assert self.room.local is not None, "refused when the config was read"
        return str(self.room.local / "warm" / name / "base")

    def reason(self, error: Exception) -> str:
        """Why a run failed, in words; what nobody foresaw is told with its trace."""
        if isinstance(error, InputError | RunFailedError):
            return str(error)
        self.console.say("".join(traceback.format_exception(error)))
        return f"{type(error).__name__}: {error}"
