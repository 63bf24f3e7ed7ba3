"""Runs of the tiny model, for tests: in this process or on the session's Ray."""

from pathlib import Path
from typing import Any

from dft_cluster.cluster.launch import on_ray
from dft_cluster.config import Config
from dft_cluster.config_file import validate
from dft_cluster.local import in_this_process
from dft_cluster.methods.prepare import prepare
from dft_cluster.methods.run import run
from dft_cluster.runs.console import Console
from dft_cluster.runs.record import Record

Tree = dict[str, dict[str, Any]]


def config(model: Path, facts: Path, folder: Path, /, **sections: dict[str, Any]) -> Config:
    """Quick rounds that move a tiny random model visibly."""
    tree: Tree = {
        "model": {"name": str(model)},
        "facts": {"path": str(facts)},
        "method": {"top": 0.2, "rounds": 3},
        "train": {"lr": 2e-3, "precision": "fp32", "epochs": 2, "batch": 3},
        "cluster": {"threads": 1},
        "converge": {"reliability": "off", "patience": "off", "keep": "last"},
        "run": {"dir": str(folder)},
        "track": {"wandb": "off"},
    }
    for name, section in sections.items():
        tree[name] = {**tree.get(name, {}), **section}
    if tree["method"].get("name") in ("rome", "memit"):
        tree["method"].pop("rounds")
    return validate(tree)


def silent(_text: str) -> None:
    """A console that nobody reads."""


def alone(settings: Config, say: Any = silent) -> Record:
    """One process, one group of one rank."""
    run(prepare(settings), in_this_process, Console(say))
    return read(settings)


def on_cluster(settings: Config, say: Any = silent) -> Record:
    run(prepare(settings), on_ray, Console(say))
    return read(settings)


def read(settings: Config) -> Record:
    record = Record(settings)
    record.look(record.storage.read_json("config.json"))
    return record


def parts(record: Record, number: int) -> list[bytes]:
    """The bytes of every rank's part of a round."""
    return [record.storage.read(name) for name in record.checkpoints.chain(number)[-1]]


class Crash(Exception):
    """Stands for a driver that dies: raised out of the real loop wherever its console speaks."""


def crash_at(words: str, times: int = 1) -> Any:
    """A console that dies when it is told these words for the n-th time."""
    left = [times]

    def say(text: str) -> None:
        if words in text:
            left[0] -= 1
            if left[0] == 0:
                raise Crash(text)

    return say
