"""A run's folder: what it is (config.json), what it measured (metrics.jsonl), and the rounds it finished."""

import json
import math
from typing import Any

from dft_cluster.config import LOOKS_AT_OLD, Config
from dft_cluster.config_file import validate
from dft_cluster.errors import InputError
from dft_cluster.runs.checkpoints import Checkpoints
from dft_cluster.runs.storage import Storage

FREE = ("cluster", "run", "track")
"""Sections that may change when a run goes on: they do not say what is computed."""
PLACES = {"model": ("name",), "facts": ("path", "format", "file", "split", "probes")}
"""Where a thing lies, by section; what it is says the fingerprint of the same name."""


class Record:
    """Opens a run's folder: a new one, or one to go on with."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.storage = Storage(config.run.dir).below(config.run.name)
        self.checkpoints = Checkpoints(self.storage)
        self.lines: list[dict[str, Any]] = []
        self.identity: dict[str, Any] = {}
        self.begun = False
        """Whether the folder is this driver's own by now."""

    @property
    def exists(self) -> bool:
        return self.storage.exists("config.json")

    @property
    def rounds(self) -> list[dict[str, Any]]:
        return [line for line in self.lines if "round" in line]

    @property
    def result(self) -> dict[str, Any] | None:
        """The last line of a run that ended by itself."""
        return self.lines[-1] if self.lines and "stop_reason" in self.lines[-1] else None

    def look(self, identity: dict[str, Any]) -> None:
        """Reads what is there, and refuses to go on where another run was begun. Writes nothing.

        `identity` holds everything that says what the run is: fingerprints, versions, base.
        """
        self.refuse_if_never()
        if not self.exists:
            self.identity = {"name": self.config.run.name, "config": self.config.to_json(), **identity}
            return
        self.identity = self.storage.read_json("config.json")
        self._compare(identity)
        self.lines = self.read_lines()

    def read_lines(self) -> list[dict[str, Any]]:
        """The whole lines of metrics that lie there."""
        said = self.storage.read("metrics.jsonl").splitlines() if self.storage.exists("metrics.jsonl") else []
        return [line for raw in said if (line := _whole(raw)) is not None]

    def look_again(self) -> None:
        """Before `begin`: what another driver did here until the folder was this one's alone counts; own notes stay."""
        notes = self.identity.get("notes", [])
        if self.exists:
            self.look(self.identity)
        for note in notes:
            self._remark(note)

    def begin(self) -> None:
        """Makes the folder of a new run, and keeps what `look` had to note of one that goes on."""
        self.begun = True
        self.storage.make()
        self.storage.write_json("config.json", self.identity)
        if self.storage.exists("metrics.jsonl") and not self.storage.read("metrics.jsonl").endswith(b"\n"):
            self._write_lines()  # or the next line would carry on the one that was cut short

    def refuse_if_never(self) -> None:
        if self.config.run.resume == "never" and self.exists:
            raise InputError(
                f"run.name: {self.storage.uri} already holds a run and run.resume is never; name another run"
            )

    def _compare(self, identity: dict[str, Any]) -> None:
        """Refuses another config or other data, with the difference shown; notes what may change bits only."""
        before, now = filled(self.identity["config"]), self.config.to_json()
        same = identity["fingerprints"].items() & self.identity["fingerprints"].items()
        moved = {(name, key) for name, _ in same for key in PLACES.get(name, ())}
        changed = [
            f"{section}.{key}: {before.get(section, {}).get(key)!r} → {now[section][key]!r}"
            for section in now
            for key in now[section]
            if section not in FREE
            and (section, key) not in moved
            and before.get(section, {}).get(key) != now[section][key]
        ]
        changed += [
            f"{name}: {self.identity['fingerprints'].get(name)} → {value}"
            for name, value in identity["fingerprints"].items()
            if self.identity["fingerprints"].get(name) != value
        ]
        if changed:
            raise InputError(
                f"{self.storage.uri} holds a run of another config; it cannot go on with this one (name another run, or "
                "change back):\n" + "\n".join(f"  {line}" for line in changed)
            )
        # Two groups do the work of one; a method that does without the old side has all ranks in one world.
        paired = self.config.method.name == "dft" and LOOKS_AT_OLD[self.config.dft.mask]
        shape = ("ranks_per_group", "threads", "gpus_per_rank", *(() if paired else ("groups",)))
        # What was left open then was given by the cluster, and is again what is left open now.
        given = {**self.identity, "groups": before["cluster"].get("groups") or self.identity.get("groups") or 2}
        then, later = (
            {key: given.get(key) if one.get(key) is None else one[key] for key in shape}
            for one in (before["cluster"], now["cluster"])
        )
        differing = [f"cluster.{key} {then[key]} → {later[key]}" for key in shape if then[key] != later[key]]
        versions = self.identity.get("versions", {})
        differing += [
            f"{package} {versions.get(package)} → {version}"
            for package, version in identity.get("versions", {}).items()
            if versions.get(package) != version
        ]
        if differing:
            self._remark(f"resumed with {', '.join(differing)}: bits may differ")

    def note(self, text: str) -> None:
        """Something the report should say (once the folder is this driver's own)."""
        self._remark(text)
        if self.begun:
            self.storage.write_json("config.json", self.identity)

    def _remark(self, text: str) -> None:
        notes = self.identity.setdefault("notes", [])
        if text not in notes:
            notes.append(text)

    def update_identity(self, **more: Any) -> None:
        self.identity |= more
        self.storage.write_json("config.json", self.identity)

    def add(self, line: dict[str, Any]) -> None:
        """One more line of metrics."""
        line = _sayable(line)
        self.lines.append(line)
        self.storage.append("metrics.jsonl", json.dumps(line, ensure_ascii=False, allow_nan=False))

    def keep_until(self, number: int) -> None:
        """Forgets what was said of rounds after `number`; they are done again."""
        kept = [line for line in self.lines if line.get("round", number + 1) <= number]
        if kept != self.lines or self.storage.exists("metrics.jsonl"):
            self.lines = kept
            self._write_lines()

    def _write_lines(self) -> None:
        self.storage.write(
            "metrics.jsonl", "".join(json.dumps(x, ensure_ascii=False) + "\n" for x in self.lines).encode()
        )


def filled(config: dict[str, Any]) -> dict[str, Any]:
    """A config as it was written down, with the defaults of keys that there were not yet: these leave things as they were."""
    try:
        return validate(config).to_json()
    except InputError:  # it has keys that there are no more, which is told as a difference
        return config


def _sayable(value: Any) -> Any:
    """JSON has no word for NaN and infinity: null."""
    if isinstance(value, dict):
        return {key: _sayable(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_sayable(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _whole(line: bytes) -> dict[str, Any] | None:
    """A line cut short by a crash is none."""
    try:
        said = json.loads(line)
    except ValueError:
        return None
    return said if isinstance(said, dict) else None
