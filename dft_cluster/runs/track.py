"""Weights & Biases: config, every round's figures, loss curves, where the core landed, patch and report."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dft_cluster.config import Config, TrackSettings
from dft_cluster.runs.storage import Storage

LARGEST_ARTIFACT = 1 << 30


class Tracker:
    """A W&B run on a `round` axis. Offline without a key; a resumed offline run is a further segment of the same id."""

    def __init__(
        self, config: Config, storage: Storage, identity: Mapping[str, Any], told: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        """`told` are the rounds that an earlier start has told already."""
        self._run: Any = None
        if config.track.wandb == "off":
            return
        self._storage = storage
        self._folder = storage.local or Path(tempfile.mkdtemp(prefix="dft-wandb-"))
        self._run = begin(
            config.track, self._folder, config.run.name, identity["wandb_id"],
            {name: identity[name] for name in ("config", "fingerprints", "versions")},
        )  # fmt: skip
        self._run.define_metric("round")
        self._run.define_metric("*", step_metric="round")
        self._run.define_metric("step")
        self._run.define_metric("loss/*", step_metric="step")
        self._steps = sum(map(_steps, told))

    def round(self, line: Mapping[str, Any]) -> None:
        """One round: every number by its dotted name, the losses step by step, the core's landing as a table."""
        if self._run is None:
            return
        import wandb

        losses = line.get("loss", {})
        for at in range(_steps(line)):
            values = {f"loss/{group}": each[at] for group, each in losses.items() if at < len(each)}
            self._run.log({**values, "step": self._steps + at})
        self._steps += _steps(line)
        numbers: dict[str, Any] = dict(_numbers({k: v for k, v in line.items() if k != "loss"}))
        landed = line.get("core", {}).get("by_layer")
        if landed:
            columns = list(landed[0])
            numbers["core/by_layer"] = wandb.Table(columns=columns, data=[[row[c] for c in columns] for row in landed])
        self._run.log(numbers)
        # What W&B is writing at this moment may come and go; the end brings it again, or says why it cannot.
        with contextlib.suppress(OSError):
            self._bring()

    def finish(self, result: Mapping[str, Any], files: Mapping[str, Path]) -> None:
        """The end of the run, with its files as artifacts."""
        if self._run is None:
            return
        import wandb

        self._run.summary.update(dict(_numbers(result)) | {"stop_reason": result["stop_reason"]})
        stays = self._storage.local is not None  # else the file here is a passing copy of what lies in the bucket
        for kind, file in files.items():
            place = self._storage.place(file.name)
            artifact = wandb.Artifact(f"{kind}-{self._run.id}", type=kind, metadata={"place": place})
            if file.stat().st_size <= LARGEST_ARTIFACT and (stays or not self._run.offline):
                artifact.add_file(str(file), policy="immutable", skip_cache=True)
            elif stays:
                artifact.add_reference(file.absolute().as_uri(), checksum=False)
            self._run.log_artifact(artifact)
        self.close()

    def close(self, *, failed: bool = False) -> None:
        if self._run is None:
            return
        end(self._run, whole=self._storage.local is None, failed=failed)
        self._run = None
        self._bring()
        if self._storage.local is None:
            shutil.rmtree(self._folder)

    def _bring(self) -> None:
        """Where the run's folder is no folder here: what there is by now goes to its place, lest it goes with this machine."""
        if self._storage.local is None:
            self._storage.put(self._folder / "wandb", "wandb")


def begin(track: TrackSettings, folder: Path, name: str, id_: str, config: Mapping[str, Any], **more: Any) -> Any:
    """A W&B run, offline without a key; it stands beside whatever the caller of `update` tracks in this process."""
    import wandb

    online = track.wandb == "online" or (track.wandb == "auto" and bool(os.environ.get("WANDB_API_KEY")))
    return wandb.init(
        mode="online" if online else "offline", reinit="create_new", project=track.project, name=name, id=id_,
        resume="allow" if online else None, tags=list(track.tags), config=dict(config), dir=str(folder), **more,
        settings=wandb.Settings(console="off", silent=True, disable_git=True, x_disable_stats=True, x_disable_meta=True),
    )  # fmt: skip


def end(run: Any, *, whole: bool, failed: bool = False) -> None:
    """Finishes a W&B run; `whole` waits until its file is, for `finish` returns while W&B's service still writes the end.

    That ends the service of this process, for whatever else it tracks, too: only where the files are to be copied at once,
    which a job's driver does, and that tracks nothing else.
    """
    import wandb

    run.finish(exit_code=int(failed))
    if whole:
        wandb.teardown()


def _steps(line: Mapping[str, Any]) -> int:
    """Of the fine-tunes of a round, which share an axis."""
    return max(map(len, line.get("loss", {}).values()), default=0)


def _numbers(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found += _numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found.append((f"{prefix}{key}", value))
    return found
