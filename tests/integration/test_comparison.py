"""Whole comparisons of the tiny model in this process: cells, resuming, failures, the shared warm-up."""

import json
import re
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import ray
import yaml

from dft_cluster.cluster.compare_job import main
from dft_cluster.comparison.loading import checked
from dft_cluster.comparison.reading import outcomes_by_round
from dft_cluster.comparison.run import compare
from dft_cluster.comparison.running import Runs
from dft_cluster.comparison.settings import laid
from dft_cluster.config_file import validate
from dft_cluster.errors import InputError
from dft_cluster.runs.alone import alone
from dft_cluster.runs.console import Console
from dft_cluster.runs.record import Record
from dft_cluster.runs.storage import Storage
from tests import tiny
from tests.integration.comparisons import Json, Launches, cell, folder, run, small, touched, tracked
from tests.integration.runs import silent
from tests.integration.test_job import ROOT, running
from tests.integration.test_job import wait_for as wait_for_words
from tests.integration.test_lock import DRIVER, wait_for
from tests.wandb_files import records

COMPARE = [sys.executable, str(ROOT / "jobs" / "compare.py")]


@pytest.fixture
def tree(tiny_model: Path, tmp_path: Path) -> Json:
    return small(tiny_model, tmp_path)


def test_a_table_of_real_runs_and_nothing_done_twice(tree: Json) -> None:
    found = run(tree, seeds=[0, 1])
    out = folder(tree)
    assert [one["name"] for one in found["cells"]] == [
        f"tiny.places.{method}.{seed}" for seed in (0, 1) for method in ("dft", "full")
    ]
    for one in found["cells"]:
        metrics = (out / "cells" / one["name"] / "metrics.jsonl").read_text().splitlines()
        lines, result = [json.loads(line) for line in metrics[:-1]], json.loads(metrics[-1])
        assert one["status"] == "finished"
        for metric in ("reliability", "generality", "locality"):
            assert one["figures"][f"{metric}.token"] == result["final"][metric]["token"]
            assert [point[metric] for point in one["points"]] == [line[metric]["token"] for line in lines]
        assert one["protocols"] == [result["final"]["protocol"]]
        worked = sum(s for line in lines for phase, s in line["seconds"].items() if phase in
                     ("hold", "old", "new", "exchange", "select", "apply"))  # fmt: skip
        assert one["costs"]["device_seconds"] == pytest.approx(worked)
        assert one["costs"]["memory"] == max(peak for line in lines for peak in line["memory"].values()) > 0
        assert one["costs"]["wall_seconds"] == result["seconds"] > one["costs"]["work_seconds"] > 0
        assert one["costs"]["ranks"] == 1
        assert one["costs"]["patch_bytes"] == (out / "cells" / one["name"] / "patch.safetensors").stat().st_size
        assert 0 < one["costs"]["changed_share"] <= 1
        assert not (out / "cells" / one["name"] / "checkpoints").exists()
    [full] = [one for one in found["summary"] if one["method"] == "full"]
    a, b = (cell(found, f"tiny.places.full.{seed}")["figures"]["locality.token"] for seed in (0, 1))
    assert full["figures"]["locality.token"]["mean"] == pytest.approx((a + b) / 2)
    assert full["figures"]["locality.token"]["n"] == 2
    reference = [cell(found, f"tiny.places.dft.{seed}")["figures"]["locality.token"] for seed in (0, 1)]
    gain = full["differences"]["locality.token"]
    assert gain["mean"] == pytest.approx((a + b - sum(reference)) / 2)
    assert gain["low"] <= gain["mean"] <= gain["high"]
    for one in found["cells"]:
        told = json.loads((out / "cells" / one["name"] / "config.json").read_text())
        record = Record(validate(told["config"]))
        record.look(told)
        kept = outcomes_by_round(record, [point["round"] for point in one["points"][1:]])["reliability"]
        for point in one["points"][1:]:
            assert 100 * fmean(share for _, share, _ in kept[point["round"]]) == pytest.approx(point["reliability"])
    assert json.loads((out / "comparison.json").read_text()) == found
    assert "| full |" in (out / "comparison.md").read_text()
    assert len((out / "comparison.csv").read_text().splitlines()) == 5
    assert "<svg" in (out / "comparison.html").read_text()

    before, launches = touched(out / "cells"), Launches()
    assert run(tree, launches, seeds=[0, 1]) == found
    assert launches.runs == []
    assert touched(out / "cells") == before
    # Another method is added to what is there; another setting of one that is there is refused.
    more = run(tree, launches, seeds=[0, 1], methods={**tree["methods"], "half": {"method": {"top": 0.5}}})
    assert launches.names == ["tiny.places.half.0", "tiny.places.half.1"]
    assert cell(more, "tiny.places.dft.0") == cell(found, "tiny.places.dft.0")
    with pytest.raises(InputError, match=r"(?s)full\.0 holds a run.*train\.lr.*full\.1 holds a run"):
        run(tree, seeds=[0, 1], methods={"dft": {}, "full": {"method": {"name": "full"}, "train": {"lr": 1e-3}}})
    with pytest.raises(InputError, match=r"facts: "):
        run(tree, report={"facts": 5})


def test_a_comparison_that_was_stopped_goes_on(tree: Json) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tree, Launches(1, KeyboardInterrupt()))
    out = folder(tree)
    half = json.loads((out / "comparison.json").read_text())
    assert [one["status"] for one in half["cells"]] == ["finished", "waiting"]
    assert "1 of 2 runs" in (out / "comparison.md").read_text()
    before, launches = touched(out / "cells" / "tiny.places.dft.0"), Launches()
    found = run(tree, launches)
    assert launches.names == ["tiny.places.full.0"]
    assert [one["status"] for one in found["cells"]] == ["finished", "finished"]
    assert touched(out / "cells" / "tiny.places.dft.0") == before


def test_what_another_driver_did_until_the_folder_was_free_is_not_done_again(tree: Json) -> None:
    launches, search = (
        Launches(),
        {"facts": 2, "trials": 1, "device_seconds": 100, "over": {"full": {"train.lr": [1e-3]}}},
    )
    first: list[Json] = []
    folder(tree).mkdir(parents=True)
    with alone(Storage(str(folder(tree))), silent), pytest.raises(InputError, match="is at work in"):
        run(tree, launches, search=search)
    found = run(tree, launches, before=lambda: first.append(run(tree, search=search)), search=search)
    assert [found] == first
    assert launches.runs == []


def test_a_cell_that_was_killed_goes_on_within(tree: Json) -> None:
    def die(text: str) -> None:
        if "] round 2 …" in text:
            raise KeyboardInterrupt

    methods = {"full": tree["methods"]["full"]}
    with pytest.raises(KeyboardInterrupt):
        compare(checked({**tree, "methods": methods}), Launches(), Console(die))
    said: list[str] = []
    found = compare(checked({**tree, "methods": methods}), Launches(), Console(said.append))
    assert any("resuming after round 1" in line for line in said)
    whole = run({**tree, "run": {**tree["run"], "name": "whole"}}, methods=methods)
    one, other = (cell(each, "tiny.places.full.0") for each in (found, whole))
    assert one["figures"] == other["figures"]
    assert [p["reliability"] for p in one["points"]] == [p["reliability"] for p in other["points"]]


def test_the_command_that_was_killed_within_its_second_cell_goes_on(tree: Json, tmp_path: Path) -> None:
    """SIGKILL of the driver, and of the Ray that it leaves behind."""
    tree["base"]["cluster"]["address"] = "local"
    tree["methods"]["full"]["method"]["rounds"] = 6
    file = tmp_path / "compare.yaml"
    file.write_text(yaml.safe_dump(tree))
    cells = folder(tree) / "cells"
    with running(str(file), command=COMPARE) as driver:
        wait_for_words(driver, "cell 2 of 2: tiny.places.full.0")
        wait_for_words(driver, "] round 2 …")
        before = {one: one.read_bytes() for one in (cells / "tiny.places.dft.0").rglob("*") if one.is_file()}
        times = touched(cells / "tiny.places.dft.0")
    assert driver.returncode == -signal.SIGKILL
    half = json.loads((folder(tree) / "comparison.json").read_text())
    assert [one["status"] for one in half["cells"]] == ["finished", "waiting"]
    assert "stop_reason" not in (cells / "tiny.places.full.0" / "metrics.jsonl").read_text()

    with running(str(file), command=COMPARE) as driver:
        told, _ = driver.communicate(timeout=240)
    assert driver.returncode == 0, told
    assert "tiny.places.dft.0 is finished" in told
    assert "resuming after round " in told
    assert {one: one.read_bytes() for one in before} == before
    assert touched(cells / "tiny.places.dft.0") == times
    found = json.loads((folder(tree) / "comparison.json").read_text())
    whole = run({**tree, "run": {**tree["run"], "name": "whole"}})
    for one, other in zip(found["cells"], whole["cells"], strict=True):
        assert one["status"] == other["status"] == "finished"
        assert one["figures"] == other["figures"]
        assert [p["reliability"] for p in one["points"]] == [p["reliability"] for p in other["points"]]


def test_a_cell_that_fails_is_shown_and_tried_again(tree: Json) -> None:
    methods = {"none": {"method": {"top": 1e-9}}, **tree["methods"]}
    found = run(tree, Launches(0, RuntimeError("the rank is gone")), methods=methods)
    status = {one["method"]: (one["status"], one["reason"]) for one in found["cells"]}
    assert status["none"][0] == "failed"
    assert "method.top" in status["none"][1]
    assert status["dft"] == ("failed", "RuntimeError: the rank is gone")
    assert status["full"][0] == "finished"
    page, text = ((folder(tree) / f"comparison.{kind}").read_text() for kind in ("html", "md"))
    assert "the rank is gone" in page
    assert "the rank is gone" in text
    launches = Launches()
    again = run(tree, launches, methods=methods)
    assert launches.names == ["tiny.places.dft.0"]
    assert [one["status"] for one in again["cells"]] == ["failed", "finished", "finished"]


def test_the_warmed_model_is_made_once_for_all_methods(tree: Json) -> None:
    launches = Launches()
    found = run({**tree, "base": laid(tree["base"], {"warmup": {"epochs": 2}})}, launches)
    assert launches.names == ["tiny.places.0", "tiny.places.dft.0", "tiny.places.full.0"]
    base = folder(tree) / "warm" / "tiny.places.0" / "base"
    assert [p.config.model.name for p in launches.runs[1:]] == [str(base)] * 2
    assert [p.config.warmup.epochs for p in launches.runs] == [2, 0, 0]
    first, second = (one["points"][0] for one in found["cells"])
    assert first["reliability"] == second["reliability"]
    warm = {**tree, "base": laid(tree["base"], {"warmup": {"epochs": 2}})}
    again = Launches()
    assert run(warm, again) == found
    assert again.runs == []


def test_models_have_tables_of_their_own(tree: Json, tmp_path: Path) -> None:
    other = tiny.architecture("gpt2", tmp_path / "gpt2")
    models = {"tiny": {}, "gpt2": {"model": {"name": str(other)}}}
    found = run(tree, models=models, methods={"full": tree["methods"]["full"]})
    assert [one["name"] for one in found["cells"]] == ["tiny.places.full.0", "gpt2.places.full.0"]
    one, two = (
        [line["figures"]["perplexity"]["mean"] for line in found["summary"] if line["model"] == m] for m in models
    )
    assert one != two
    parts = re.split(r"^## (.+)$", (folder(tree) / "comparison.md").read_text(), flags=re.MULTILINE)
    texts = dict(zip(parts[1::2], parts[2::2], strict=True))
    rows = [next(line for line in texts[model].splitlines() if line.startswith("| full |")) for model in models]
    assert rows[0] != rows[1]


def test_a_name_that_stands_for_other_weights_by_now_is_told(
    tree: Json, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Runs, "known", lambda *_: {})  # as of a hub's model, which nothing downloads to look at it
    model = shutil.copytree(tree["base"]["model"]["name"], tmp_path / "model")
    tree = laid(tree, {"base": {"model": {"name": str(model)}}})
    assert run(tree, methods={"dft": {}})["cells"][0]["status"] == "finished"
    shutil.rmtree(model)
    shutil.copytree(tiny.architecture("gpt2", tmp_path / "gpt2"), model)
    found = run(tree)
    assert cell(found, "tiny.places.dft.0")["status"] == "finished"
    other = cell(found, "tiny.places.full.0")
    assert other["status"] == "failed"
    assert "began with other weights than tiny.places.dft.0" in other["reason"]


def test_a_data_set_may_have_its_own_number_of_facts(tree: Json) -> None:
    data = {"few": {"report": {"facts": 1}}, "more": {"report": {"facts": 3}}}
    found = run(tree, data=data, methods={"full": tree["methods"]["full"]}, keep="figures")
    assert [one["facts"] for one in found["records"].values()] == [1, 3]
    assert "few 1 facts | more 3 facts" in (folder(tree) / "comparison.md").read_text()
    assert not list(folder(tree).rglob("patch.safetensors"))
    launches = Launches()
    assert run(tree, launches, data=data, methods={"full": tree["methods"]["full"]}, keep="figures") == found
    assert launches.runs == []


@pytest.mark.usefixtures("cluster")
def test_a_comparison_has_one_driver_at_a_time(
    tree: Json, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    head = ray.get_runtime_context().gcs_address
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # the command would put its own handler there
    file = tmp_path / "compare.yaml"
    file.write_text(yaml.safe_dump(laid(tree, {"base": {"cluster": {**tree["base"]["cluster"], "address": head}}})))
    with ExitStack() as stack:
        words = [sys.executable, "-c", DRIVER, head, str(folder(tree)), str(tmp_path), "other"]
        other = stack.enter_context(subprocess.Popen(words))
        stack.callback(other.kill)
        (tmp_path / "go").touch()
        wait_for(tmp_path / "other-says")
        assert (tmp_path / "other-says").read_text() == "mine"
        assert main([str(file)]) != 0
        assert "is at work in" in (told := capsys.readouterr()).out + told.err
        assert not (folder(tree) / "cells").exists()


def test_tables_that_wandb_refused_are_sent_by_the_next_start(tree: Json, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {**tree, "methods": {"full": tree["methods"]["full"]}, "track": {"wandb": "offline"}}

    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("no way to W&B")

    with monkeypatch.context() as broken, pytest.raises(ConnectionError):
        broken.setattr("dft_cluster.comparison.track.begin", refuse)
        run(small)
    launches = Launches()
    run(small, launches)
    assert launches.runs == []
    assert "cells" in tracked(folder(tree))
    seen = touched(folder(tree) / "wandb")
    run(small)
    assert touched(folder(tree) / "wandb") == seen
    mark = json.loads((folder(tree) / "wandb.json").read_text())
    run({**small, "seeds": [0, 1]})
    assert json.loads((folder(tree) / "wandb.json").read_text()) == mark
    assert {one.run.run_id for one in records(folder(tree)) if one.HasField("run")} == {mark["id"]}


@pytest.mark.usefixtures("cluster")
def test_the_command_on_ray_with_its_table_in_wandb(
    tree: Json, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    file = tmp_path / "compare.yaml"
    file.write_text(yaml.safe_dump({**tree, "methods": {"full": tree["methods"]["full"]}}))
    try:
        assert main([str(file), "seeds=[0, 0]", "draws=none"]) == 2
        told = capsys.readouterr().err
        assert "seeds" in told and "draws" in told
        assert main([str(file), "--check"]) == 0
        assert "1 runs" in capsys.readouterr().out
        assert main([str(file), "--check", "methods.full.method.layers=[99]", "methods.full.method.name=ft_c"]) == 2
        assert "tiny.places.full: " in capsys.readouterr().err
        assert not folder(tree).exists()
        assert main([str(file), "track.wandb=offline"]) == 0
    finally:
        signal.signal(signal.SIGTERM, handler)
    kept = tracked(folder(tree))
    assert "reliability.token" in kept["cells"]["columns"]
    assert kept["tiny/results-places"]["columns"][:3] == ["", "seeds", "token reliability"]
