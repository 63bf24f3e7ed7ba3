"""Searches of real comparisons: what they see, keep and cost, and how they go on."""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import yaml

from dft_cluster.cluster.compare_job import main
from dft_cluster.comparison.settings import laid
from dft_cluster.comparison.tables import searches
from dft_cluster.errors import InputError
from dft_cluster.methods.prepare import Prepared
from tests.integration.comparisons import Json, Launches, cell, folder, run, small, tracked


@pytest.fixture
def tree(tiny_model: Path, tmp_path: Path) -> Json:
    return small(tiny_model, tmp_path)


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


def test_trials_stand_in_markdown_on_the_page_and_in_wandb(tree: Json) -> None:
    search = {"facts": 2, "trials": 2, "device_seconds": 100, "over": {"full": {"train.lr": [1e-3, 2e-3]}}}
    methods = {"full": tree["methods"]["full"]}
    found = run(tree, search=search, methods=methods, track={"wandb": "offline"})
    [shown] = searches(found)
    rows = [list(row) for row in shown.rows]
    assert sorted(row[1] for row in rows) == ["train.lr=0.001", "train.lr=0.002"]
    assert sum("★" in row[0] for row in rows) == 1
    names = [name for _, name in shown.columns]

    text, page = ((folder(tree) / f"comparison.{kind}").read_text() for kind in ("md", "html"))
    for row in ["", *names], *rows:
        assert f"| {' | '.join(row)} |" in text
    [part] = re.findall(r'<table data-table="search-tiny\.places\.full">(.*?)</table>', page)
    head, *lines = (
        [unescape(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line)]
        for line in re.findall(r"<tr>(.*?)</tr>", part)[1:]
    )
    assert (head, lines) == (names, rows)
    kept = tracked(folder(tree))["search-tiny.places.full"]
    assert (kept["columns"], kept["data"]) == (["", *names], rows)


def test_a_search_that_was_stopped_goes_on(tree: Json) -> None:
    over = {"full": {"train.lr": [1e-3, 2e-3, 3e-3]}, "dft": {"method.top": [0.1]}}
    search = {"facts": 2, "trials": 3, "device_seconds": 100, "over": over}
    with pytest.raises(KeyboardInterrupt):
        run(tree, Launches(2, KeyboardInterrupt()), search=search)
    with pytest.raises(InputError, match=r"search tiny\.places\.full was begun with other over; it cannot go on"):
        run(tree, search={**search, "over": {**over, "full": {"train.lr": [1e-3]}}})
    other = {**search, "over": {**over, "dft": {"method.top": [0.3]}}}
    begun = folder(tree) / "search" / "tiny.places.dft" / "trial-000-2"
    begun.mkdir(parents=True)  # all that is left of a first trial that was killed
    with pytest.raises(InputError, match=r"search tiny\.places\.dft was begun with other over"):
        run(tree, search=other)
    kept = json.loads((file := folder(tree) / "search.json").read_text())
    file.write_text(json.dumps({**kept, "asked": {"tiny.places.full": kept["asked"]["tiny.places.full"]}}))
    with pytest.raises(KeyboardInterrupt):  # one that was added since: nothing says how it was begun
        run(tree, Launches(0, KeyboardInterrupt()), search=other)
    file.write_text(json.dumps(kept))
    shutil.rmtree(begun)
    launches = Launches()
    # A search that was not begun may still be asked for otherwise.
    found = run(tree, launches, search=other)
    assert launches.names == ["trial-002-2", "trial-000-2", "tiny.places.dft.0", "tiny.places.full.0"]
    assert len(found["search"]["searches"]["tiny.places.full"]["trials"]) == 3
    assert found["search"]["searches"]["tiny.places.dft"]["chosen"]["method.top"] == 0.3


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
    told = "its search has not ended: trial 0 failed (start 1 of it): OSError: the disk is full"
    assert (full["status"], full["reason"]) == ("failed", told)
    assert dft["status"] == "finished"
    launches = Launches()
    again = run(tree, launches, search=search)
    assert launches.names == ["trial-000-2", "trial-001-2", "tiny.places.full.0"]
    assert cell(again, "tiny.places.full.0")["status"] == "finished"


def test_a_search_of_which_nothing_came_may_be_asked_for_otherwise(tree: Json) -> None:
    """What no adapter of this model can be is found where a trial is prepared, and may be mended in the same folder."""
    methods = {"dft": {}, "full": {"train": {"adapter": "lora"}}}

    def kinds(*tried: list[str]) -> Json:
        return {"facts": 2, "trials": 1, "device_seconds": 100, "over": {"full": {"lora.kinds": tried}}}

    found = run(tree, methods=methods, search=kinds([]))
    assert "its search has not ended: trial 0 failed" in cell(found, "tiny.places.full.0")["reason"]
    assert "matches no module" in cell(found, "tiny.places.full.0")["reason"]
    launches = Launches()
    again = run(tree, launches, methods=methods, search=kinds(["mlp"]))
    assert launches.names == ["trial-000-2", "tiny.places.full.0"]
    assert cell(again, "tiny.places.full.0")["status"] == "finished"
    [trial] = again["search"]["searches"]["tiny.places.full"]["trials"]
    assert (trial["setting"], trial["tries"]) == ({"lora.kinds": ["mlp"]}, 1)
    with pytest.raises(InputError, match=r"search tiny\.places\.full was begun with other over"):
        run(tree, methods=methods, search=kinds(["attention"]))


def test_the_searches_of_methods_that_are_left_out_stay(tree: Json) -> None:
    over = {"dft": {"method.top": [0.1, 0.3]}, "full": {"train.lr": [1e-3, 2e-3]}}
    search = {"facts": 2, "trials": 2, "device_seconds": 100, "over": over}
    found = run(tree, search=search)
    kept = json.loads((folder(tree) / "search.json").read_text())
    late = {"late": {"method": {"name": "full"}}}
    run(tree, search={**search, "over": {"late": {"train.lr": [1e-3]}}}, methods=late)
    later = json.loads((folder(tree) / "search.json").read_text())
    assert later["searches"].keys() == {*kept["searches"], "tiny.places.late"}
    assert {name: later["searches"][name] for name in kept["searches"]} == kept["searches"]
    assert later["asked"].keys() == later["searches"].keys()
    again = Launches()
    assert run(tree, again, search=search)["search"] == found["search"]
    assert again.runs == []


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
    assert "1 problem\n  search.like.random: dft.reuse, dft.renew, dft.old_epochs: " in told
    assert "does without the old answers" in told
