"""What a finished run of a comparison says: its figures, its costs, its trajectory, its outcome fact by fact."""

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dft_cluster.comparison.statistics import Outcomes, Point
from dft_cluster.patch.inspect import inspect
from dft_cluster.runs.record import Record
from dft_cluster.runs.report_data import wall

METRICS = ("reliability", "generality", "locality")
KINDS = ("token", "exact")
IDLE = ("evaluate", "checkpoint", "track")
"""Phases of a round that change no weight."""
LIKELIER = ("ES", "PS", "NS")
"""CounterFact's scores by likelihood, whose harmonic mean is S."""
COSTS = "costs.json"

Json = dict[str, Any]


def ranks(line: Json) -> int:
    return max(1, len(line["memory"]))


def worked(line: Json) -> float:
    """Wall seconds that a round spent on changing the weights: two groups train side by side. What it found in a cache counts
    as if it had been measured anew."""
    spent = {phase: seconds for phase, seconds in line["seconds"].items() if phase not in IDLE}
    return wall(line | {"seconds": spent}) + float(sum(line.get("elsewhere", {}).values()))


def trajectory(lines: list[Json], on: str) -> list[Point]:
    """The measured rounds, each with the device-seconds of all rounds up to it."""
    points, cost = [], 0.0
    for line in lines:
        cost += worked(line) * ranks(line)
        if "reliability" in line:
            found: Json = {metric: line[metric][on] if metric in line else None for metric in METRICS}
            taught = line["round"] > 0 and set(line.get("loss", {})) != {"old"}
            points.append(Point(line["round"], cost, **found, taught=taught))
    return points


def costs(record: Record, scratch: Path) -> Json:
    """What a finished run cost, until the round that it kept; kept beside the run, whose patch may be removed then."""
    storage = record.storage
    if storage.exists(COSTS):
        return dict(storage.read_json(COSTS))
    assert record.result is not None
    useful = [line for line in record.rounds if line["round"] <= record.result["best_round"]]
    with tempfile.TemporaryDirectory(dir=scratch) as folder:  # out of a bucket it may be large
        patch = inspect(storage.fetch("patch.safetensors", Path(folder)))
    found = {
        "device_seconds": sum(worked(line) * ranks(line) for line in useful),
        "work_seconds": sum(worked(line) for line in useful),
        "wall_seconds": record.result["seconds"],
        "memory": max((peak for line in record.rounds for peak in line["memory"].values()), default=0),
        "ranks": max(map(ranks, record.rounds)),
        "patch_bytes": patch.size,
        "changed_share": patch.total.share,
    }
    storage.write_json(COSTS, found)
    return found


def equipment(record: Record) -> str:
    """What a run was computed with, as far as it says."""
    given = {key: record.identity[key] for key in ("gpus_per_rank", "threads") if key in record.identity}
    cluster = record.identity["config"]["cluster"] | given
    told = [f"{max(map(ranks, record.rounds))} rank(s)"]
    for key, name in (("gpus_per_rank", "GPU(s)"), ("threads", "thread(s)")):
        if cluster.get(key) is not None:
            told.append(f"{cluster[key]:g} {name} each")
    return ", ".join([*told, f"torch {record.identity['versions']['torch']}"])


def outcomes(record: Record, name: str = "final") -> dict[str, Outcomes]:
    """By metric or likelihood score, every probe of the final model: fact, share of tokens right, all right (of a score: won,
    as both). Empty where a run kept none."""
    file = f"scores/{name}.json"
    return dict(record.storage.read_json(file)) if record.storage.exists(file) else {}


class ByRound(Mapping[int, Outcomes]):
    """The same after each round, read when it is asked for: few of them ever are."""

    def __init__(self, record: Record, metric: str, rounds: Iterable[int]) -> None:
        self._record, self._metric, self._rounds = record, metric, list(rounds)
        self._read: dict[int, Outcomes] = {}

    def __getitem__(self, number: int) -> Outcomes:
        if number not in self._rounds:
            raise KeyError(number)
        if number not in self._read:
            self._read[number] = outcomes(self._record, f"round-{number:04d}").get(self._metric, [])
        return self._read[number]

    def __iter__(self) -> Iterator[int]:
        return iter(self._rounds)

    def __len__(self) -> int:
        return len(self._rounds)


def outcomes_by_round(record: Record, rounds: Iterable[int]) -> dict[str, ByRound]:
    """By metric."""
    numbers = list(rounds)
    return {metric: ByRound(record, metric, numbers) for metric in METRICS}


def slim(record: Record, keep: str) -> None:
    """Removes of a finished run what the comparison does not need again."""
    if keep != "all":
        record.storage.remove("checkpoints")
    if keep == "figures" and record.storage.exists("patch.safetensors"):
        record.storage.system.delete_file(record.storage.path("patch.safetensors"))
