"""A W&B run is whole when it is closed where its file is to go elsewhere; what others track in this process goes on."""

import os
from pathlib import Path
from typing import Any

import pytest
import wandb

from dft_cluster.config_file import validate
from dft_cluster.runs.storage import Storage
from dft_cluster.runs.track import Tracker, end
from tests.wandb_files import records, rows


def test_a_finished_run_lies_whole_on_disk(tmp_path: Path) -> None:
    run = wandb.init(mode="offline", dir=str(tmp_path), settings=wandb.Settings(console="off", silent=True))
    for n in range(40):
        run.log({f"table-{n}": wandb.Table(columns=["a", "b"], data=[[i, "x" * 100] for i in range(200)])})
    end(run, whole=True)
    [file] = tmp_path.rglob("run-*.wandb")
    ended = file.stat().st_size
    wandb.teardown()
    assert file.stat().st_size == ended
    assert wandb.run is None


@pytest.mark.parametrize("reinit", ["default", "create_new"])
def test_what_others_track_in_this_process_goes_on(tmp_path: Path, reinit: Any) -> None:
    quiet = wandb.Settings(console="off", silent=True)
    theirs = wandb.init(mode="offline", dir=str(tmp_path / "theirs"), settings=quiet, reinit=reinit)
    settings = validate({"track": {"wandb": "offline"}, "run": {"dir": str(tmp_path / "ours")}})
    identity = {"wandb_id": "abcd1234", "config": {}, "fingerprints": {}, "versions": {}}
    before = dict(os.environ)
    Tracker(settings, Storage(str(tmp_path / "ours")), identity).close()
    assert dict(os.environ) == before
    theirs.log({"loss": 1.0})
    theirs.finish()
    with wandb.init(mode="offline", dir=str(tmp_path / "theirs"), settings=quiet) as later:
        later.log({"loss": 2.0})
    wandb.teardown()
    assert len(list((tmp_path / "theirs").rglob("run-*.wandb"))) == 2


def test_a_later_start_goes_on_with_the_steps_and_a_failed_run_is_told_as_failed(tmp_path: Path) -> None:
    settings = validate({"track": {"wandb": "offline"}, "run": {"dir": str(tmp_path)}})
    identity = {"wandb_id": "abcd1234", "config": {}, "fingerprints": {}, "versions": {}}
    lines = [{"round": n, "loss": {"old": [1.0, 2.0], "new": [1.0, 2.0, 3.0]}} for n in (1, 2)]
    for told, line, steps, failed in (([], lines[0], [0, 1, 2], True), (lines[:1], lines[1], [3, 4, 5], False)):
        folder = tmp_path / f"failed-{failed}"
        folder.mkdir()
        tracker = Tracker(settings, Storage(str(folder)), identity, told)
        tracker.round(line)
        tracker.close(failed=failed)
        found = list(records(folder))
        assert [row["step"] for row in rows(found) if "step" in row] == steps
        assert [record.exit.exit_code for record in found if record.HasField("exit")] == [int(failed)]
