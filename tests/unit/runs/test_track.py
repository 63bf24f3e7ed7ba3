"""A W&B run is whole when it is closed."""

from pathlib import Path

import wandb

from dft_cluster.runs.track import end


def test_a_finished_run_lies_whole_on_disk(tmp_path: Path) -> None:
    run = wandb.init(mode="offline", dir=str(tmp_path), settings=wandb.Settings(console="off", silent=True))
    for n in range(40):
        run.log({f"table-{n}": wandb.Table(columns=["a", "b"], data=[[i, "x" * 100] for i in range(200)])})
    end(run)
    [file] = tmp_path.rglob("run-*.wandb")
    ended = file.stat().st_size
    wandb.teardown()
    assert file.stat().st_size == ended
    assert wandb.run is None


def test_what_others_track_in_this_process_goes_on(tmp_path: Path) -> None:
    quiet = wandb.Settings(console="off", silent=True)
    theirs = wandb.init(mode="offline", dir=str(tmp_path / "theirs"), settings=quiet)
    ours = wandb.init(mode="offline", dir=str(tmp_path / "ours"), settings=quiet, reinit="create_new")
    end(ours)
    assert wandb.run is theirs
    theirs.log({"loss": 1.0})
    theirs.finish()
    assert list((tmp_path / "theirs").rglob("run-*.wandb"))
