"""Whole comparisons of the tiny model in this process: cells, resuming, failures, searches, the shared warm-up."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
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
from dft_cluster.comparison.settings import laid
from dft_cluster.config_file import validate
from dft_cluster.errors import InputError
from dft_cluster.local import in_this_process
from dft_cluster.methods.prepare import Prepared
from dft_cluster.runs.console import Console
from dft_cluster.runs.record import Record
from tests import tiny
from tests.integration.runs import silent
from tests.integration.test_lock import DRIVER, wait_for

Json = dict[str, Any]


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


@pytest.fixture
def tree(tiny_model: Path, tmp_path: Path) -> Json:
    return {
        "base": {
            "model": {"name": str(tiny_model)},
            "facts": {"path": str(tiny.facts_file(tmp_path, 20))},
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
        "run": {"name": "both", "dir": str(tmp_path / "runs")},
        "track": {"wandb": "off"},
    }


def run(tree: Json, launches: Launches | None = None, **more: Any) -> Json:
    if "search" in more:  # which leaves no say to what ends a run early
        tree = {**tree, "base": {name: section for name, section in tree["base"].items() if name != "converge"}}
    return compare(checked({**tree, **more}), launches or Launches(), Console(silent))


def folder(tree: Json) -> Path:
    return Path(tree["run"]["dir"]) / tree["run"]["name"]


def touched(below: Path) -> dict[str, int]:
    return {str(file.relative_to(below)): file.stat().st_mtime_ns for file in below.rglob("*") if file.is_file()}


def cell(found: Json, name: str) -> Json:
    [one] = [one for one in found["cells"] if one["name"] == name]
    return one


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
                     ("old", "new", "exchange", "select", "apply"))  # fmt: skip
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


def test_a_search_sees_development_facts_alone_and_keeps_its_share(tree: Json) -> None:
    search = {
        "facts": 3, "trials": 2, "device_seconds": 100,
        "over": {"dft": {"method.top": [0.1, 0.3]}, "full": {"train.lr": [1e-3, 2e-3, 3e-3]}},
        "like": {"random": "dft"},
    }  # fmt: skip
    methods = {**tree["methods"], "random": {"dft": {"mask": "random"}}}
    launches = Launches()
    found = run(tree, launches, search=search, methods=methods)
    out = folder(tree)
    tried = [p for p in launches.runs if p.config.run.name.startswith("trial-")]
    cells = [p for p in launches.runs if not p.config.run.name.startswith("trial-")]
    reported = {fact.id for p in cells for fact in p.facts}
    assert len(reported) == 4
    assert len(tried) == 4
    assert not reported & {fact.id for p in tried for fact in p.facts}
    assert {len(p.facts) for p in tried} == {3}
    kept = json.loads((out / "search.json").read_text())
    assert "highest harmonic mean" in kept["rule"]
    for name, one in kept["searches"].items():
        assert len(one["trials"]) == 2
        assert one["device_seconds"] == pytest.approx(sum(trial["device_seconds"] for trial in one["trials"]))
        assert one["device_seconds"] <= 100
        assert one["chosen"] in [{**t["setting"], "converge.keep": t["round"]} for t in one["trials"]], name
    chosen = kept["searches"]["tiny.places.dft"]["chosen"]["method.top"]
    own = {p.config.run.name: p.config for p in cells}
    assert float(own["tiny.places.dft.0"].method.top) == float(own["tiny.places.random.0"].method.top) == chosen
    assert own["tiny.places.random.0"].dft.mask == "random"
    for method in ("dft", "full"):
        keep = kept["searches"][f"tiny.places.{method}"]["chosen"]["converge.keep"]
        assert own[f"tiny.places.{method}.0"].converge.keep == cell(found, f"tiny.places.{method}.0")["round"] == keep
    assert own["tiny.places.full.0"].train.lr == kept["searches"]["tiny.places.full"]["chosen"]["train.lr"]
    assert found["search"]["searches"] == kept["searches"]
    text = (out / "comparison.md").read_text()
    assert "★" in text
    assert "random: the setting of dft" in text

    again = Launches()
    assert run(tree, again, search=search, methods=methods) == found
    assert again.runs == []
    with pytest.raises(
        InputError, match=r"(?s)search tiny\.places\.dft was begun with other budget.*tiny\.places\.full"
    ):
        run(tree, search={**search, "device_seconds": 200}, methods=methods)


def test_a_search_that_was_stopped_goes_on(tree: Json) -> None:
    search = {"facts": 2, "trials": 3, "device_seconds": 100, "over": {"full": {"train.lr": [1e-3, 2e-3, 3e-3]}}}
    methods = {"full": tree["methods"]["full"]}
    with pytest.raises(KeyboardInterrupt):
        run(tree, Launches(2, KeyboardInterrupt()), search=search, methods=methods)
    launches = Launches()
    found = run(tree, launches, search=search, methods=methods)
    assert launches.names == ["trial-002-2", "tiny.places.full.0"]
    assert len(found["search"]["searches"]["tiny.places.full"]["trials"]) == 3


def test_a_search_whose_trials_all_met_with_trouble_is_made_again(tree: Json) -> None:
    """A cell is not run at some other setting meanwhile."""

    class Troubled(Launches):
        @contextmanager
        def __call__(self, prepared: Prepared, *rest: Any) -> Iterator[Any]:
            if prepared.config.run.name.startswith("trial-"):
                raise OSError("the disk is full")
            with super().__call__(prepared, *rest) as team:
                yield team

    search = {"facts": 2, "trials": 2, "device_seconds": 100, "over": {"full": {"train.lr": [1e-3, 2e-3]}}}
    found = run(tree, Troubled(), search=search)
    full, dft = (cell(found, f"tiny.places.{method}.0") for method in ("full", "dft"))
    assert (full["status"], full["reason"]) == ("failed", "its search came to no setting: OSError: the disk is full")
    assert dft["status"] == "finished"
    launches = Launches()
    again = run(tree, launches, search=search)
    assert launches.names == ["trial-000-2", "trial-001-2", "tiny.places.full.0"]
    assert cell(again, "tiny.places.full.0")["status"] == "finished"


def test_a_share_of_time_ends_a_search(tree: Json) -> None:
    search = {"facts": 2, "trials": 3, "device_seconds": 1e-3, "over": {"full": {"train.lr": [1e-3, 2e-3, 3e-3]}}}
    found = run(tree, search=search, methods={"full": tree["methods"]["full"]})
    one = found["search"]["searches"]["tiny.places.full"]
    assert len(one["trials"]) == 1
    assert "used up" in one["ended"]
    assert cell(found, "tiny.places.full.0")["status"] == "finished"


def test_without_development_facts_nothing_is_begun(tree: Json) -> None:
    search = {"over": {"full": {"train.lr": [1e-3]}}}
    with pytest.raises(InputError, match=r"data\.places: search: no development facts"):
        run(tree, search=search, report={"facts": 20})
    assert not folder(tree).exists()


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


def test_what_was_moved_with_its_facts_is_not_done_again(tree: Json, tmp_path: Path) -> None:
    """Searched, warmed and run in one folder, and gone on with in another one, with one method more."""
    search = {"facts": 2, "trials": 2, "device_seconds": 100, "over": {"full": {"train.lr": [1e-3, 2e-3]}}}
    methods = {"full": tree["methods"]["full"]}
    here, there = (tmp_path / name / "model" for name in ("here", "there"))
    shutil.copytree(tree["base"]["model"]["name"], here)
    base = laid(tree["base"], {"warmup": {"epochs": 1}, "model": {"name": str(here)}})
    found = run({**tree, "base": base}, search=search, methods=methods)
    folder(tree).parent.rename(tmp_path / "moved")
    here.parent.rename(there.parent)
    facts = Path(tree["base"]["facts"]["path"]).rename(tmp_path / "other.jsonl")
    moved = {**tree, "run": {**tree["run"], "dir": str(tmp_path / "moved")}}
    moved["base"] = laid(base, {"facts": {"path": str(facts), "format": "common"}, "model": {"name": str(there)}})
    launches = Launches()
    again = run(moved, launches, search=search, methods={**methods, "dft": {}})
    assert launches.names == ["tiny.places.dft.0"]
    assert cell(again, "tiny.places.full.0") == cell(found, "tiny.places.full.0")
    with (tmp_path / "moved/both/warm/tiny.places.0/base/model.safetensors").open("r+b") as model:
        model.seek(-1, 2)
        model.write(b"x")
    with pytest.raises(InputError, match=r"full\.0 holds a run of another config(?s:.*)model: "):
        run(moved, search=search, methods=methods)


def test_models_have_tables_of_their_own(tree: Json, tmp_path: Path) -> None:
    other = tiny.architecture("gpt2", tmp_path / "gpt2")
    models = {"tiny": {}, "gpt2": {"model": {"name": str(other)}}}
    found = run(tree, models=models, methods={"full": tree["methods"]["full"]})
    assert [one["name"] for one in found["cells"]] == ["tiny.places.full.0", "gpt2.places.full.0"]
    one, two = (
        [line["figures"]["perplexity"]["mean"] for line in found["summary"] if line["model"] == m] for m in models
    )
    assert one != two
    text = (folder(tree) / "comparison.md").read_text()
    assert "tiny" in text and "gpt2" in text


def test_a_data_set_may_have_its_own_number_of_facts(tree: Json) -> None:
    data = {"few": {"report": {"facts": 1}}, "more": {"report": {"facts": 3}}}
    found = run(tree, data=data, methods={"full": tree["methods"]["full"]}, keep="figures")
    assert [one["facts"] for one in found["records"].values()] == [1, 3]
    assert "few 1 facts | more 3 facts" in (folder(tree) / "comparison.md").read_text()
    assert not list(folder(tree).rglob("patch.safetensors"))
    launches = Launches()
    assert run(tree, launches, data=data, methods={"full": tree["methods"]["full"]}, keep="figures") == found
    assert launches.runs == []


def test_what_a_control_refuses_of_the_settings_that_it_would_take_over_is_told_at_once(
    tree: Json, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "compare.yaml"
    search = {"facts": 2, "over": {"dft": {"dft.old_epochs": [1, 2]}}, "like": {"random": "dft"}}
    base = {name: section for name, section in tree["base"].items() if name != "converge"}
    methods = {"dft": {}, "random": {"dft": {"mask": "random"}}}
    file.write_text(yaml.safe_dump({**tree, "base": base, "methods": methods, "search": search}))
    assert main([str(file), "--check"]) == 2
    told = capsys.readouterr().err
    assert "tiny.places.random with {'dft.old_epochs': 1}: " in told and "does without the old answers" in told
    assert "tiny.places.dft" not in told


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
        assert "seeds" in told or "draws" in told
        assert main([str(file), "--check"]) == 0
        assert "1 runs" in capsys.readouterr().out
        assert main([str(file), "--check", "methods.full.method.layers=[99]", "methods.full.method.name=ft_c"]) == 2
        assert "tiny.places.full: " in capsys.readouterr().err
        assert not folder(tree).exists()
        assert main([str(file), "track.wandb=offline"]) == 0
    finally:
        signal.signal(signal.SIGTERM, handler)
    [segment] = (folder(tree) / "wandb").glob("offline-run-*")
    written = [json.loads(one.read_text()) for one in segment.rglob("media/table/**/*.table.json")]
    assert any("reliability.token" in one["columns"] for one in written)
    assert any(one["columns"][:2] == ["", "places reliability"] for one in written)
