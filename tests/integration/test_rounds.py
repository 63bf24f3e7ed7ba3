"""Whole runs of the tiny model: the formula, the groups, the run directory, resuming."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from dft_cluster.errors import InputError
from dft_cluster.local import in_this_process
from dft_cluster.methods import progress
from dft_cluster.methods.prepare import prepare
from dft_cluster.methods.run import run
from dft_cluster.patch import Folder, apply, fingerprint, revert
from dft_cluster.runs.alone import alone
from dft_cluster.runs.console import Console
from dft_cluster.runs.parts import Part
from dft_cluster.runs.storage import Storage
from tests.integration import runs
from tests.integration.runs import Crash, crash_at


def test_a_round_is_the_formula(tiny_model: Path, tiny_facts: Path, tmp_path: Path) -> None:
    """θ + λ·core from the whole run equals the same by brute force on deltas of two separate fine-tunes."""
    settings = runs.config(tiny_model, tiny_facts, tmp_path, method={"top": 0.1, "rounds": 1, "scale": 0.7})
    record = runs.alone(settings)
    finetuned = {}
    for side in ("old", "new"):
        # Plain fine-tuning of the same answers in the same order is what each group does.
        swapped = tmp_path / f"{side}.jsonl"
        lines = [json.loads(line) for line in tiny_facts.read_text().splitlines()]
        for line in lines:
            if side == "old":
                line["target_new"], line["target_old"] = line["target_old"], line["target_new"]
        swapped.write_text("".join(json.dumps(line) + "\n" for line in lines))
        full = runs.config(tiny_model, swapped, tmp_path, method={"name": "full", "rounds": 1}, run={"name": f"full-{side}"},
                           cluster={"groups": 1})  # fmt: skip
        finetuned[side] = Part(tmp_path / f"full-{side}" / runs.alone(full).checkpoints.chain(1)[0][0])

    base = Folder(tiny_model)
    parameters = prepare(settings).parameters
    start = [base.flat(p.saved, 0, p.numel).clone() for p in parameters]
    tuned: dict[str, list[torch.Tensor]] = {}
    for side, part in finetuned.items():
        tuned[side] = [theta.clone() for theta in start]
        for p, theta in zip(parameters, tuned[side], strict=True):
            part.overlay(p.index, 0, theta)
    theta = torch.cat(start)
    new, old = torch.cat(tuned["new"]) - theta, torch.cat(tuned["old"]) - theta
    conflict = ((new > 0) & (old < 0)) | ((new < 0) & (old > 0))
    score = torch.where(conflict, (new - old).abs(), 0.0)
    k = theta.numel() // 10
    order = torch.sort(score, descending=True, stable=True).indices[:k]
    expected = theta.clone()
    expected[order] = theta[order] + new[order] * 0.7

    part = Part(tmp_path / "dft" / record.checkpoints.chain(1)[0][0])
    found = [one.clone() for one in start]
    for p, one in zip(parameters, found, strict=True):
        part.overlay(p.index, 0, one)
    assert torch.equal(torch.cat(found), expected)
    line = record.rounds[1]
    assert line["core"]["kept"] == k == int((torch.cat(found) != theta).sum())
    assert line["core"]["conflict_share"] == pytest.approx(float(conflict.double().mean()))


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("scope", ["global", "tensor"])
def test_two_groups_give_the_bits_of_one(tiny_model: Path, tiny_facts: Path, tmp_path: Path, scope: str) -> None:
    sections: dict[str, Any] = {"method": {"scope": scope, "top": 0.3, "rounds": 2, "of": "conflicts"}}
    one = runs.alone(
        runs.config(tiny_model, tiny_facts, tmp_path, cluster={"groups": 1}, run={"name": "one"}, **sections)
    )
    two = runs.on_cluster(
        runs.config(tiny_model, tiny_facts, tmp_path, cluster={"groups": 2}, run={"name": "two"}, **sections)
    )
    for number in (1, 2):
        assert runs.parts(one, number) == runs.parts(two, number)
    for a, b in zip(one.rounds, two.rounds, strict=True):
        for name in ("reliability", "generality", "locality", "still_old", "perplexity", "loss"):
            assert a.get(name) == b.get(name)


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(("stage", "precision"), [(1, "bf16"), (2, "fp32"), (3, "bf16")])
def test_a_run_on_two_by_two_ranks_leaves_what_the_contract_names(
    tiny_model: Path, tiny_facts: Path, tmp_path: Path, stage: int, precision: str
) -> None:
    settings = runs.config(
        tiny_model, tiny_facts, tmp_path, cluster={"ranks_per_group": 2}, train={"zero_stage": stage, "precision": precision},
        warmup={"epochs": 2}, run={"export": True}, evaluate={"protocols": ["teacher_forced", "generated", "likelihood"]},
        method={"rounds": 2},
    )  # fmt: skip
    record = runs.on_cluster(settings)
    folder = tmp_path / "dft"
    first, *_, last = record.rounds
    assert first["locality"] == {"token": 100.0, "exact": 100.0}
    assert [line["round"] for line in record.rounds] == [0, 1, 2]
    assert {"old", "new", "exchange", "select", "apply", "evaluate", "checkpoint", "track"} <= set(last["seconds"])
    assert set(last["memory"]) == {"old-0", "old-1", "new-0", "new-1"}
    assert {"ES", "PS", "NS", "S"} == set(last["likelihood"])
    won = record.storage.read_json("scores/round-0002.json")
    for name in ("ES", "PS", "NS"):
        assert 100 * fmean(one for _, one, _ in won[name]) == pytest.approx(last["likelihood"][name])
    assert len(last["loss"]["old"]) == len(last["loss"]["new"]) == 2 * 3
    assert record.lines[-1]["stop_reason"] == "method.rounds=2 done"
    assert "locality_of_model" in last

    # The patch turns base/ into model/ and back, bit for bit; base/ is the warmed model, not the user's.
    base, model = folder / "base", folder / "model"
    assert record.identity["base"] == str(base)
    assert fingerprint(base) != fingerprint(tiny_model)
    assert apply(folder / "patch.safetensors", base, tmp_path / "again") == fingerprint(model)
    assert revert(folder / "patch.safetensors", model, tmp_path / "back") == fingerprint(base)
    # model/ holds the masters of the last round, and loads.
    tensors = load_file(model / "model.safetensors")
    live = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    assert torch.equal(dict(live.named_parameters())["model.norm.weight"], tensors["model.norm.weight"])
    changed = sum(int((tensors[n] != load_file(base / "model.safetensors")[n]).sum()) for n in tensors)
    kept = [line["core"]["kept"] for line in record.rounds[1:]]
    assert max(kept) <= changed <= sum(kept)
    assert "<svg" in (folder / "report.html").read_text()


def test_keep_best_ends_with_the_best_round(tiny_model: Path, tiny_facts: Path, tmp_path: Path) -> None:
    """The first in which all is learnt: those after it have nothing to gain."""
    settings = runs.config(
        tiny_model, tiny_facts, tmp_path, converge={"keep": "best", "on": "token"}, method={"rounds": 8, "top": 1},
        train={"lr": 6e-3, "epochs": 6},
    )  # fmt: skip
    record = runs.alone(settings)
    best = record.lines[-1]["best_round"]
    assert best < record.rounds[-1]["round"], "or nothing has to be gone back to"
    score = [(line["reliability"]["token"], line["locality"]["token"]) for line in record.rounds]
    assert score[best] == max(score[1:])
    final = record.lines[-1]["final"]
    assert (final["reliability"]["token"], final["locality"]["token"]) == score[best]
    # The patch is that round's: its masters, laid over the base.
    applied = tmp_path / "applied"
    apply(tmp_path / "dft" / "patch.safetensors", tiny_model, applied)
    base, result = Folder(tiny_model), Folder(applied)
    for p in prepare(settings).parameters:
        theta = base.flat(p.saved, 0, p.numel).clone()
        for [name] in record.checkpoints.chain(best):
            Part(tmp_path / "dft" / name).overlay(p.index, 0, theta)
        assert torch.equal(result.flat(p.saved, 0, p.numel), theta)


@pytest.mark.parametrize("method", ["dft", "full"])
@pytest.mark.parametrize(
    ("words", "times"), [("measuring", 1), ("round 1", 1), ("round 1", 2), ("round 3", 1), ("making the patch", 1)]
)
def test_killed_and_resumed_ends_with_the_bits_of_one_never_killed(
    tiny_model: Path, tiny_facts: Path, tmp_path: Path, method: str, words: str, times: int
) -> None:
    sections: dict[str, Any] = {"warmup": {"epochs": 1}, "method": {"name": method}}
    whole = runs.alone(runs.config(tiny_model, tiny_facts, tmp_path, run={"name": "same"}, **sections))
    settings = runs.config(tiny_model, tiny_facts, tmp_path / "again", run={"name": "same"}, **sections)
    with pytest.raises(Crash):
        runs.alone(settings, crash_at(words, times))
    resumed = runs.alone(settings)
    assert [line["round"] for line in resumed.rounds] == [0, 1, 2, 3]
    for number in (1, 2, 3):
        assert runs.parts(resumed, number) == runs.parts(whole, number)
    for a, b in zip(whole.rounds, resumed.rounds, strict=True):
        for name in ("reliability", "generality", "locality", "perplexity", "loss" if a["round"] else "generated"):
            assert a[name] == b[name]
    assert whole.lines[-1]["final"] == resumed.lines[-1]["final"]
    patches = [tmp_path / "same", tmp_path / "again" / "same"]
    assert [load_bits(p / "patch.safetensors") for p in patches[:1]] == [
        load_bits(p / "patch.safetensors") for p in patches[1:]
    ]


def test_killed_between_a_rounds_manifest_and_its_line(tiny_model: Path, tiny_facts: Path, tmp_path: Path) -> None:
    """The round counts: what its ranks did is in the manifest, and θ is measured anew."""
    whole = runs.alone(runs.config(tiny_model, tiny_facts, tmp_path / "whole"))
    settings = runs.config(tiny_model, tiny_facts, tmp_path)
    with pytest.raises(Crash):
        runs.alone(settings, crash_at("round 3"))
    metrics = tmp_path / "dft" / "metrics.jsonl"
    *kept, _ = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join(kept))
    resumed = runs.alone(settings)
    for a, b in zip(whole.rounds, resumed.rounds, strict=True):
        for name in ("reliability", "generality", "locality", "perplexity", *(("loss", "core") if a["round"] else ())):
            assert a[name] == b[name]


@pytest.mark.parametrize("begun", [False, True])
def test_a_folder_in_which_another_driver_is_at_work_is_left_as_it_is(
    tiny_model: Path, tiny_facts: Path, tmp_path: Path, begun: bool
) -> None:
    settings, said = runs.config(tiny_model, tiny_facts, tmp_path), list[str]()
    folder = tmp_path / "dft"
    folder.mkdir()
    if begun:
        with pytest.raises(Crash):
            runs.alone(settings, crash_at("round 2"))
    with alone(Storage(str(folder)), runs.silent):
        before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        with pytest.raises(InputError, match=f"process {os.getpid()} of .* is at work in {folder}"):
            runs.alone(settings, said.append)
        assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before
    # Ranks that would take the memory of the other's are not even begun where that can be known before.
    assert any("building the engine" in text for text in said) != begun
    assert len(runs.alone(settings).rounds) == 4


def load_bits(file: Path) -> dict[str, list[Any]]:
    return {name: tensor.tolist() for name, tensor in load_file(file).items()}


def test_a_checkpoint_cut_short_is_left_aside_and_said(tiny_model: Path, tiny_facts: Path, tmp_path: Path) -> None:
    settings = runs.config(tiny_model, tiny_facts, tmp_path)
    whole = runs.parts(runs.alone(runs.config(tiny_model, tiny_facts, tmp_path / "whole")), 3)
    with pytest.raises(Crash):
        runs.alone(settings, crash_at("round 3"))
    part = tmp_path / "dft" / "checkpoints" / "round-0002" / "rank-00000.safetensors"
    part.write_bytes(part.read_bytes()[:-100])
    said: list[str] = []
    record = runs.alone(settings, said.append)
    assert any("checkpoint of round 2 is left aside" in line and "round 1 is used" in line for line in said)
    assert any("round 2" in note for note in record.identity["notes"])
    assert any("kept in checkpoints/aside-round-0002-1" in note for note in record.identity["notes"])
    assert (part.parents[1] / "aside-round-0002-1" / part.name).exists()
    assert runs.parts(record, 3) == whole


def test_finished_rounds_outlast_the_loss_of_what_was_measured(
    tiny_model: Path, tiny_facts: Path, tmp_path: Path
) -> None:
    whole = runs.parts(runs.alone(runs.config(tiny_model, tiny_facts, tmp_path / "whole")), 3)
    settings = runs.config(tiny_model, tiny_facts, tmp_path)
    with pytest.raises(Crash):
        runs.alone(settings, crash_at("round 3"))
    (tmp_path / "dft" / "metrics.jsonl").unlink()
    record = runs.alone(settings)
    [note] = [note for note in record.identity["notes"] if "done again" in note]
    assert "checkpoints/aside-round-0001-1, checkpoints/aside-round-0002-1" in note
    assert (tmp_path / "dft" / "checkpoints" / "aside-round-0002-1" / "manifest.json").exists()
    assert runs.parts(record, 3) == whole


def test_a_finished_run_prints_its_result_and_another_config_is_refused(
    tiny_model: Path, tiny_facts: Path, tmp_path: Path
) -> None:
    settings = runs.config(tiny_model, tiny_facts, tmp_path, method={"rounds": 1})
    record = runs.alone(settings)
    before = (tmp_path / "dft" / "metrics.jsonl").read_bytes()
    said: list[str] = []
    again = runs.alone(settings, said.append)
    assert again.result == record.result
    assert (tmp_path / "dft" / "metrics.jsonl").read_bytes() == before
    assert any("is finished" in line for line in said)
    with pytest.raises(InputError, match=r"method\.top: '0\.2' → '0\.3'"):
        runs.alone(runs.config(tiny_model, tiny_facts, tmp_path, method={"rounds": 1, "top": 0.3}))
    with pytest.raises(InputError, match=r"run\.resume is never"):
        runs.alone(runs.config(tiny_model, tiny_facts, tmp_path, method={"rounds": 1}, run={"resume": "never"}))


def test_a_run_that_never_resumes_may_need_other_ranks_on_the_way(
    tiny_model: Path, tiny_facts: Path, tmp_path: Path
) -> None:
    """The warm-up trains every weight, ROME one: two teams, and the folder is the run's own when the second comes."""
    method = {"name": "rome", "rounds": 1}
    settings = runs.config(
        tiny_model, tiny_facts, tmp_path, method=method, warmup={"epochs": 1}, run={"resume": "never"}
    )
    assert run(prepare(settings), in_this_process, Console(runs.silent))["rounds"] == 1


@pytest.mark.parametrize(
    ("key", "given", "asked"), [("gpus_per_rank", 1.0, 0.0), ("cpus_per_rank", 0.5, 1.0), ("threads", 3, 2)]
)
@pytest.mark.parametrize("tells", [False, True])
def test_what_a_cluster_gave_a_run_it_has_again_when_it_goes_on_unless_told_otherwise(
    tiny_model: Path, tiny_facts: Path, tmp_path: Path, key: str, given: float, asked: float, tells: bool
) -> None:
    wanted: list[float | None] = []

    @contextmanager
    def giving(prepared: Any, *rest: Any) -> Iterator[Any]:
        """This process gives nothing: the team says that it did."""
        wanted.append(getattr(prepared.config.cluster, key))
        with in_this_process(prepared, *rest) as team:
            team.given = {key: given}
            yield team

    told: dict[str, Any] = {"method": {"rounds": 2}, "cluster": {"threads": None}}
    settings = runs.config(tiny_model, tiny_facts, tmp_path, **told)
    with pytest.raises(Crash):
        run(prepare(settings), giving, Console(crash_at("round 2")))
    again = runs.config(tiny_model, tiny_facts, tmp_path, **told | ({"cluster": {key: asked}} if tells else {}))
    run(prepare(again), giving, Console(runs.silent))
    assert wanted == [None, asked if tells else given]
    assert runs.read(settings).identity[key] == given, "what it was given first"


@pytest.mark.parametrize("warmup", [0, 1])
def test_what_another_driver_did_before_the_folder_was_taken_is_not_done_again(
    tiny_model: Path, tiny_facts: Path, tmp_path: Path, warmup: int
) -> None:
    settings = runs.config(tiny_model, tiny_facts, tmp_path, warmup={"epochs": warmup}, method={"rounds": 1})
    written: dict[Path, int] = {}

    def times() -> dict[Path, int]:
        return {
            file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file() and file.name != ".lock"
        }

    @contextmanager
    def late(*words: Any) -> Iterator[Any]:
        """Between this driver's first look and its ranks, another one does the whole run."""
        runs.alone(settings)
        written.update(times())
        with in_this_process(*words) as team:
            yield team

    said = run(prepare(settings), late, Console(runs.silent))
    assert said == runs.read(settings).result
    assert written == times()


def test_a_run_that_another_driver_ended_while_it_was_waited_for_needs_no_ranks(
    tiny_model: Path, tiny_facts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = runs.config(tiny_model, tiny_facts, tmp_path, method={"rounds": 2})
    with pytest.raises(Crash):
        runs.alone(settings, crash_at("round 2"))

    @contextmanager
    def waited(*words: Any) -> Iterator[None]:
        monkeypatch.undo()
        runs.alone(settings)
        with alone(*words):
            yield

    def never(*_: Any) -> Any:
        raise AssertionError("ranks are started")

    monkeypatch.setattr(progress, "alone", waited)
    said = run(prepare(settings), never, Console(runs.silent))
    assert said == runs.read(settings).result


def test_old_knowledge_in_the_models_own_words(tiny_model: Path, tiny_facts: Path, tmp_path: Path) -> None:
    settings = runs.config(tiny_model, tiny_facts, tmp_path, facts={"old": "generated"}, method={"rounds": 1})
    record = runs.alone(settings)
    pairs = record.storage.read_json("pairs.json")
    assert len(pairs) == 8
    assert {pair["kind"] for pair in pairs} <= {"swapped", "short"}
    assert all(pair["key_old"] in pair["old"] and pair["key_new"] in pair["new"] for pair in pairs)
    assert "match=containment" in record.rounds[0]["generated"]["protocol"]
