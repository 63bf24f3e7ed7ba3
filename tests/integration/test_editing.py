"""ROME and MEMIT in whole runs: the change is what their formulas say, and what they are told is looked at before they begin."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from dft_cluster.cluster.actors import ActorGroup
from dft_cluster.editing import layers
from dft_cluster.errors import InputError
from dft_cluster.methods import rome
from dft_cluster.methods.job import RoundRefusedError
from dft_cluster.methods.prepare import prepare
from dft_cluster.patch import inspect
from dft_cluster.ranks.rank import Rank
from tests import tiny
from tests.integration import runs
from tests.integration.methods import METHODS, settings, theta


def test_the_text_that_keys_are_measured_on_is_told_and_when_it_is_too_little(
    tiny_model: Path, tiny_facts: Path, tmp_path: Path
) -> None:
    def told(words: int, name: str) -> list[str]:
        file = tmp_path / f"{words}.txt"
        file.write_text("\n\n".join(["red"] * words))
        said: list[str] = []
        run = settings(tiny_model, tiny_facts, tmp_path, "rome", editing={"covariance": str(file)}, run={"name": name})
        runs.alone(run, said.append)
        return [line.split("] ", 1)[1] for line in said if "covariance" in line]

    tokens = len(tiny.tokenizer()("red").input_ids)
    source, warning, done = told(3, "little")
    assert source == f"covariance of the keys: {3 * tokens} tokens, 3 texts of {tmp_path / '3.txt'}"
    assert f"too little text, {3 * tokens} tokens for keys of width 64;" in warning
    assert done.startswith("covariance of layer ") and done.endswith(": 3 of 3, 0 s left")
    _, done = told(64, "enough")
    assert done.endswith(": 64 of 64, 0 s left")
    _, kept = told(64, "again")
    assert re.search(r": kept from an earlier run, which took \d+ s to measure it$", kept)


@pytest.mark.usefixtures("cluster")
def test_all_ranks_trace_and_seek_values_and_edit_the_layers_that_one_does(
    tiny_facts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven facts, so that one rank has nothing to trace in the end; in ten layers `auto` would take others."""
    shares: dict[str, list[list[int]]] = {"trace": [], "seek_values": []}
    effects: list[list[float]] = []
    start_each, choose = ActorGroup.start_each, layers.by_effect

    def counted(group: ActorGroup, verb: Any, arguments: Any) -> Any:
        if verb.__name__ in shares:
            shares[verb.__name__].append([len(given) for given, *_ in arguments])
        return start_each(group, verb, arguments)

    def chosen(told: Sequence[float], *rest: Any) -> list[int]:
        effects.append(list(told))
        return choose(told, *rest)

    monkeypatch.setattr(ActorGroup, "start_each", counted)
    monkeypatch.setattr(layers, "by_effect", chosen)
    model = tiny.architecture("llama", tmp_path / "model", layers=10)
    edited = []
    for ranks in (1, 2):
        config = settings(
            model, tiny_facts, tmp_path, "memit", run={"name": f"ranks-{ranks}"}, facts={"limit": 7},
            method={"name": "memit", "layers": "trace"}, cluster={"groups": 1, "ranks_per_group": ranks, "threads": 1},
        )  # fmt: skip
        record = (runs.alone if ranks == 1 else runs.on_cluster)(config)
        before, after = theta(record, model, 0), theta(record, model, 1)
        edited.append([name for name in before if (after[name] != before[name]).any()])
    assert shares == {"trace": [[1, 1], [1, 1], [1, 1], [1, 0]], "seek_values": [[4, 3]]}
    one, two = effects
    assert len(one) == 10 and max(one) > 1e-3
    assert two == pytest.approx(one, rel=1e-3, abs=1e-6), "the same work, added up in another order"
    best = one.index(max(one))
    assert edited == [[f"model.layers.{layer}.mlp.down_proj.weight" for layer in range(best - 2, best + 3)]] * 2
    assert layers.by_rule(10, layers.SEVERAL)[0] != best - 2


@pytest.mark.parametrize(("precision", "stage"), [("fp32", 1), ("bf16", 2)])
def test_rome_gives_the_sought_value_for_the_mean_key_by_a_change_of_rank_one(
    tiny_model: Path, tiny_facts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, stage: int
) -> None:
    """A whole run: W k* = v* in the masters of the finished round, with k* read anew by other hands."""
    asked: dict[str, Any] = {}
    solve, draw = Rank.solve_rank_one, rome.prefixes

    @wraps(solve)
    def solved(rank: Rank, layer: int, key: torch.Tensor, given: torch.Tensor, value: torch.Tensor) -> Any:
        asked.update(layer=layer, key=key, value=value)
        return solve(rank, layer, key, given, value)

    def drawn(*arguments: Any) -> list[str]:
        asked["prefixes"] = draw(*arguments)
        return list(asked["prefixes"])

    monkeypatch.setattr(Rank, "solve_rank_one", solved)
    monkeypatch.setattr(rome, "prefixes", drawn)
    config = settings(
        tiny_model, tiny_facts, tmp_path, "rome",
        facts={"limit": 1}, train={"precision": precision, "zero_stage": stage},
    )  # fmt: skip
    record = runs.alone(config)
    name = f"model.layers.{asked['layer']}.mlp.down_proj.weight"
    before, after = (theta(record, tiny_model, number)[name].double() for number in (0, 1))
    key, value = asked["key"].double(), asked["value"].double()
    assert float((after @ key - value).norm() / value.norm()) < 1e-4
    assert float((before @ key - value).norm() / value.norm()) > 1e-2, "the value was to be reached"
    sizes = torch.linalg.svdvals(after - before)
    assert float(sizes[1] / sizes[0]) < 1e-5

    [fact] = prepare(config).facts
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    read: list[torch.Tensor] = []
    model.get_submodule(name.removesuffix(".weight")).register_forward_pre_hook(lambda _, given: read.append(given[0]))
    begin = fact.prompt.index(fact.subject) + len(fact.subject)
    wordings = [fact.prompt, *(f"{prefix}. {fact.prompt}" for prefix in asked["prefixes"])]
    for wording in wordings:
        upto = wording[: len(wording) - len(fact.prompt) + begin]
        with torch.no_grad():
            model(input_ids=torch.tensor([tiny.tokenizer()(upto).input_ids]))
    mean = torch.stack([inputs[0, -1] for inputs in read]).mean(0).double()
    assert len(read) == 1 + config.editing.key_contexts
    near = 1e-5 if precision == "fp32" else 0.03
    assert float((mean - key).norm() / key.norm()) < near


@pytest.mark.parametrize(("precision", "stage"), [("fp32", 1), ("bf16", 2)])
def test_memit_changes_the_masters_by_the_closed_form(
    tiny_facts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, stage: int
) -> None:
    """A whole run against R Kᵀ (λC + K Kᵀ)⁻¹ solved directly in float64, layer by layer."""
    solve, edit = Rank.solve_closed_form, Rank.edit
    wanted: dict[int, torch.Tensor] = {}

    @wraps(solve)
    def solved(rank: Rank, layer: int, keys: torch.Tensor, weight: float) -> Any:
        k = keys.double()
        wanted[layer] = k.T @ torch.linalg.inv(weight * rank._solid(layer).double() + k @ k.T)
        return solve(rank, layer, keys, weight)

    @wraps(edit)
    def edited(rank: Rank, layer: int, missing: torch.Tensor, factor: torch.Tensor) -> None:
        wanted[layer] = missing.double() @ wanted[layer]
        edit(rank, layer, missing, factor)

    monkeypatch.setattr(Rank, "solve_closed_form", solved)
    monkeypatch.setattr(Rank, "edit", edited)
    train = {"precision": precision, "zero_stage": stage}
    model = tiny.architecture("llama", tmp_path / "model", layers=4)
    chosen = {"name": "memit", "layers": [0, 1, 2]}
    record = runs.alone(settings(model, tiny_facts, tmp_path, "memit", method=chosen, train=train))
    before, after = (theta(record, model, number) for number in (0, 1))
    assert sorted(wanted) == chosen["layers"]
    for layer, change in wanted.items():
        name = f"model.layers.{layer}.mlp.down_proj.weight"
        found = after[name].double() - before[name].double()
        assert float(change.norm()) > 1e-4
        assert float((found - change).norm() / change.norm()) < 1e-3


@pytest.mark.parametrize("method", ["rome", "memit"])
def test_a_value_that_is_lost_costs_nothing(
    tiny_model: Path, tiny_facts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """ROME has edited the live weights by then; what was written is as it was, and the same command goes on."""
    seek, sought = Rank.seek_values, []

    @wraps(seek)
    def lost(rank: Rank, requests: Any, *rest: Any) -> Any:
        found = seek(rank, requests, *rest)
        sought.append(found)
        return replace(found, losses=[math.nan] * len(found.losses)) if len(sought) == 2 else found

    config = settings(tiny_model, tiny_facts, tmp_path, method, editing={**METHODS[method]["editing"], "batch": 4})
    with monkeypatch.context() as patched:
        patched.setattr(Rank, "seek_values", lost)
        with pytest.raises(RoundRefusedError, match=r"round 1: the value of tiny-\d.* was lost"):
            runs.alone(config)
    assert len(sought) == 2 and not list((tmp_path / "dft" / "checkpoints").rglob("*.safetensors"))
    assert not (tmp_path / "dft" / "patch.safetensors").exists()
    runs.alone(config)
    runs.alone(
        settings(tiny_model, tiny_facts, tmp_path, method, editing=config.editing.model_dump(), run={"name": "whole"})
    )
    again, whole = (inspect(tmp_path / name / "patch.safetensors").result_fingerprint for name in ("dft", "whole"))
    assert again == whole


def test_a_subject_that_is_not_in_its_prompt_is_told_before_anything_begins(
    tiny_model: Path, tiny_facts: Path, tmp_path: Path
) -> None:
    file = tmp_path / "elsewhere.jsonl"
    records = [json.loads(line) for line in tiny_facts.read_text().splitlines()]
    file.write_text("".join(json.dumps({**one, "subject": "Nowhere"}) + "\n" for one in records))
    with pytest.raises(InputError, match=rf"in {len(records)} of {len(records)} facts it is not"):
        prepare(settings(tiny_model, file, tmp_path, "memit"))


def test_text_that_is_no_text_is_refused_before_anything_begins(
    tiny_model: Path, tiny_facts: Path, tmp_path: Path
) -> None:
    file = tmp_path / "text.txt"
    for content, said in ((b"caf\xe9 au lait", "line 1: byte 0xe9 is not UTF-8"), (b" \n\n ", "the file is empty")):
        file.write_bytes(content)
        with pytest.raises(InputError, match=rf"editing\.covariance: .*{said}"):
            prepare(settings(tiny_model, tiny_facts, tmp_path, "rome", editing={"covariance": str(file)}))
