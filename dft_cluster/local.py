"""`update(model, facts)`: the same rounds in one process, without a cluster."""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dft_cluster.config import Config
from dft_cluster.config_file import validate
from dft_cluster.errors import InputError
from dft_cluster.facts.fact import Fact
from dft_cluster.methods.prepare import Prepared, prepare
from dft_cluster.methods.run import run
from dft_cluster.ranks.assemble import assemble
from dft_cluster.ranks.local import LocalTeam
from dft_cluster.ranks.rank import Source
from dft_cluster.runs.console import Console


@dataclass(frozen=True)
class Updated:
    """What an update leaves: the patch, every line of metrics, and the run's folder."""

    patch: Path
    metrics: list[dict[str, Any]]
    folder: Path


def update(
    model: str | Path,
    facts: str | Path | Sequence[Fact],
    /,
    run_dir: str | Path | None = None,
    **sections: Mapping[str, Any],
) -> Updated:
    """Updates what `model` (name, hub id or folder) knows by `facts` (a file, or Fact objects).

    `sections` are those of the config file: `update(model, facts, method={"top": 0.1}, facts={"limit": 20})`.
    The run's folder is `run_dir` (or `run={"dir": …}`), or a new one among the system's temporary files; the same folder
    again resumes.
    """
    config = _config(model, facts, run_dir, sections)
    given = None if isinstance(facts, str | Path) else list(facts)
    console = Console()
    try:
        run(prepare(config, given), in_this_process, console)
    finally:
        console.close()
    folder = Path(config.run.dir) / config.run.name

    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return Updated(folder / "patch.safetensors", lines, folder)


def _config(
    model: str | Path,
    facts: str | Path | Sequence[Fact],
    run_dir: str | Path | None,
    sections: Mapping[str, Mapping[str, Any]],
) -> Config:
    if wrong := [name for name, section in sections.items() if not isinstance(section, Mapping)]:
        raise InputError(
            f"update(): {', '.join(wrong)} must be a mapping of settings, such as method={{'name': 'full'}}"
        )
    tree: dict[str, dict[str, Any]] = {name: dict(section) for name, section in sections.items()}
    tree.setdefault("model", {})["name"] = str(model)
    if isinstance(facts, str | Path):
        tree.setdefault("facts", {})["path"] = str(facts)
    tree["cluster"] = {**tree.get("cluster", {}), "groups": 1, "ranks_per_group": 1}
    place = str(run_dir or tree.get("run", {}).get("dir") or tempfile.mkdtemp(prefix="dft-run-"))
    if "://" in place:
        raise InputError(f"update(): run_dir {place!r} is no folder here; a run in a bucket is for jobs/update.py")
    tree.setdefault("run", {})["dir"] = str(Path(place).expanduser().absolute())
    return validate(tree, source="update()")


@contextmanager
def in_this_process(prepared: Prepared, source: Source, console: Console) -> Iterator[LocalTeam]:
    """A team of one: this very process."""
    if torch.distributed.is_initialized():
        raise InputError(
            "update() makes a world of its own, and torch.distributed is initialized already; call it elsewhere"
        )
    console.phase("building the engine")
    team = LocalTeam()
    environment = dict(os.environ)
    device = "cuda" if torch.cuda.is_available() and prepared.config.cluster.gpus_per_rank != 0 else "cpu"
    try:
        assemble(
            team,
            prepared.config,
            source,
            prepared.parameters,
            prepared.standing,
            device=device,
            threads=prepared.config.cluster.threads,
        )
        yield team
    finally:
        try:
            team.close()
        finally:
            os.environ.clear()
            os.environ.update(environment)
