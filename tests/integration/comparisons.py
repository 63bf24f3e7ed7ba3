"""Small comparisons of the tiny model in this process, for tests."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dft_cluster.comparison.loading import checked
from dft_cluster.comparison.run import compare
from dft_cluster.local import in_this_process
from dft_cluster.methods.prepare import Prepared
from dft_cluster.runs.console import Console
from tests import tiny
from tests.integration.runs import silent
from tests.integration.test_job import read_wandb

Json = dict[str, Any]


def small(model: Path, folder: Path) -> Json:
    """Two methods on four of twenty facts."""
    return {
        "base": {
            "model": {"name": str(model)},
            "facts": {"path": str(tiny.facts_file(folder, 20))},
            "method": {"top": 0.2, "rounds": 2},
            "train": {"lr": 2e-3, "precision": "fp32", "epochs": 1, "batch": 3},
            "cluster": {"threads": 1, "groups": 1},
            "evaluate": {"protocols": ["teacher_forced"]},
            "converge": {"reliability": "off", "patience": "off"},
        },
        "models": {"tiny": {}},
        "data": {"places": {}},
        "methods": {"dft": {}, "full": {"method": {"name": "full"}}},
        "report": {"facts": 4},
        "draws": 100,
        "run": {"name": "both", "dir": str(folder / "runs")},
        "track": {"wandb": "off"},
    }


class Launches:
    """In this process, with a look at every run that is started; `stop` is raised instead of the n-th."""

    def __init__(self, at: int = -1, stop: BaseException | None = None) -> None:
        self.runs: list[Prepared] = []
        self.at, self.stop = at, stop

    @contextmanager
    def __call__(self, prepared: Prepared, *rest: Any) -> Iterator[Any]:
        self.runs.append(prepared)
        if len(self.runs) - 1 == self.at and self.stop is not None:
            raise self.stop
        with in_this_process(prepared, *rest) as team:
            yield team

    @property
    def names(self) -> list[str]:
        return [prepared.config.run.name for prepared in self.runs]


def run(tree: Json, launches: Launches | None = None, *, before: Callable[[], Any] = lambda: None, **more: Any) -> Json:
    if "search" in more:  # which leaves no say to what ends a run early
        tree = {**tree, "base": {name: section for name, section in tree["base"].items() if name != "converge"}}
    return compare(checked({**tree, **more}), launches or Launches(), Console(silent), before)


def folder(tree: Json) -> Path:
    return Path(tree["run"]["dir"]) / tree["run"]["name"]


def touched(below: Path) -> dict[str, int]:
    return {str(file.relative_to(below)): file.stat().st_mtime_ns for file in below.rglob("*") if file.is_file()}


def cell(found: Json, name: str) -> Json:
    [one] = [one for one in found["cells"] if one["name"] == name]
    return one


def tracked(out: Path) -> dict[str, Json]:
    """The tables of an offline W&B run: those that its history names, by the name they were logged under."""
    history, _, _ = read_wandb(out)
    paths = {key.removesuffix("/path"): path for row in history for key, path in row.items() if key.endswith("/path")}
    assert "cells" in paths, f"W&B kept no more than {', '.join(paths)}"  # the last one
    [files] = (out / "wandb").glob("offline-run-*/files")
    return {name: json.loads((files / path).read_text()) for name, path in paths.items()}
