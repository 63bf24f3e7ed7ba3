"""The comparison's table in Weights & Biases, offline without a key."""

import secrets
import shutil
import tempfile
from pathlib import Path

from dft_cluster.comparison.reading import Json
from dft_cluster.comparison.settings import CompareSettings
from dft_cluster.comparison.tables import flat, searches, tables
from dft_cluster.runs.storage import Storage
from dft_cluster.runs.track import begin, end

FILE = "wandb.json"


def tracked(room: Storage) -> bool:
    """Whether an earlier start's tables were sent to the end."""
    return room.exists(FILE) and bool(room.read_json(FILE).get("sent"))


def track(settings: CompareSettings, room: Storage, found: Json) -> None:
    """One W&B run that holds the comparison's tables; the cells' own runs are tracked where their config says so.

    Later starts go on with the same run (offline: with a further segment of it).
    """
    if settings.track.wandb == "off":
        return
    import wandb

    if not room.exists(FILE):
        room.write_json(FILE, {"id": secrets.token_hex(4)})

    folder = room.local or Path(tempfile.mkdtemp(prefix="dft-wandb-"))
    id_ = room.read_json(FILE)["id"]
    run = begin(settings.track, folder, settings.run.name, id_, found["settings"], job_type="comparison")
    made = {f"{model}/{table.name}": table for model in found["models"] for table in tables(found, model)}
    made |= {table.name: table for table in searches(found)}
    for name, one in made.items():
        columns = ["", *(" ".join(part for part in column if part) for column in one.columns)]
        run.log({name: wandb.Table(columns=columns, data=[list(row) for row in one.rows])})
    columns, rows = flat(found)
    run.log({"cells": wandb.Table(columns=columns, data=rows)})
    end(run, whole=room.local is None)
    if room.local is None:
        room.put(folder / "wandb", "wandb")
        shutil.rmtree(folder)
    room.write_json(FILE, {"id": id_, "sent": True})
