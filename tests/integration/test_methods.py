"""Every method through the whole run: its defining equation, the patch it leaves, and going on after a crash."""

import json
import math
import re
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from dft_cluster.cluster.actors import ActorGroup
from dft_cluster.cluster.job import main
from dft_cluster.errors import InputError
from dft_cluster.methods import rome
from dft_cluster.methods.full import Full, go_on
from dft_cluster.methods.job import RoundRefusedError
from dft_cluster.methods.prepare import prepare
from dft_cluster.models.structure import parameters
from dft_cluster.patch import Folder, apply, fingerprint, inspect
from dft_cluster.ranks.rank import Rank
from dft_cluster.training.engine import Engine
from tests import tiny
from tests.integration import runs
from tests.integration.methods import METHODS, Tree, flat, one_round, settings, start_of, swapped, theta
from tests.integration.runs import Crash, crash_at

FAMILY_METHODS = (
    "dft", "dft-lora", "random", "new", "same", "full", "lora", "ft_c", "ft_c-layer", "f_learning", "interpolate", "rome",
    "memit",
)  # fmt: skip


LINEAR_MAPS = {"gpt2": 8, "gptj": 12, "bloom": 8, "mistral": 14, "qwen2": 14, "gpt_neox": 8}
"""Of two blocks."""


@pytest.mark.parametrize("method", METHODS)
def test_killed_and_resumed_is_never_killed_and_the_patch_is_the_last_round(
    tiny_model: Path, tiny_facts: Path, tmp_path: Path, method: str
) -> None:
    whole = settings(tiny_model, tiny_facts, tmp_path, method)
    record = runs.alone(whole)
    broken = settings(tiny_model, tiny_facts, tmp_path, method, run={"name": "broken"})
    with pytest.raises(Crash):
        runs.alone(broken, crash_at("making the patch" if method in ("rome", "memit") else "round 2"))
    again = runs.alone(broken)
    assert again.identity["name"] == "broken"
    assert inspect(tmp_path / "dft" / "patch.safetensors").result_fingerprint == (
        inspect(tmp_path / "broken" / "patch.safetensors").result_fingerprint
    )
    apply(tmp_path / "dft" / "patch.safetensors", tiny_model, tmp_path / "out")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    expected = theta(record, tiny_model, len(record.rounds) - 1)
    changed = 0
    for name, weight in plain.named_parameters():
        assert torch.equal(weight, expected[name]), name
        changed += int((weight != theta(record, tiny_model, 0)[name]).sum())
    assert changed > 0
    assert fingerprint(tmp_path / "out") != fingerprint(tiny_model)
    final = record.result and record.result["final"]
    assert final
    assert record.storage.read_json("scores/final.json")["reliability"][0][0] == 0


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_interpolation_is_a_part_of_the_way(tiny_model: Path, tiny_facts: Path, tmp_path: Path, adapter: str) -> None:
    start = flat(start_of(tiny_model))
    tuned = flat(one_round(tiny_model, tiny_facts, tmp_path, "full" if adapter == "none" else "lora", lora={"rank": 8}))
    found = flat(
        one_round(
            tiny_model, tiny_facts, tmp_path, "interpolate", interpolate={"alpha": 0.3}, train={"adapter": adapter}
        )
    )
    torch.testing.assert_close(found, start + 0.3 * (tuned - start), rtol=0, atol=1e-7)
    assert (found != start).any()


@pytest.mark.parametrize("forget", ["full", "lora"])
def test_forgetting_takes_a_part_of_the_old_delta_away(
    tiny_model: Path, tiny_facts: Path, tmp_path: Path, forget: str
) -> None:
    """θ' = θ − λ·(FT{θ, K_old} − θ), and learning begins there."""
    start = flat(start_of(tiny_model))
    old = flat(
        one_round(
            tiny_model,
            swapped(tiny_facts, tmp_path),
            tmp_path,
            "full" if forget == "full" else "lora",
            lora={"rank": 8},
        )
    )
    tree = settings(tiny_model, tiny_facts, tmp_path, "f_learning", f_learning={"scale": 0.2, "forget": forget})
    record = runs.alone(tree)
    forgot = flat(theta(record, tiny_model, 1))
    torch.testing.assert_close(forgot, start - 0.2 * (old - start), rtol=0, atol=1e-7)
    assert record.rounds[1]["loss"].keys() == {"old"}
    assert record.rounds[2]["loss"].keys() == {"new"}


@pytest.mark.parametrize("learn", ["full", "lora"])
def test_learning_after_forgetting_is_plain_fine_tuning_from_there(
    tiny_model: Path, tiny_facts: Path, tmp_path: Path, learn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """θ* = FT{θ', K_new} to the bit: the forgotten model saved, and fine-tuned by a run of its own in the order of round 2."""
    halves = {"scale": 0.2, "learn": learn}
    record = runs.alone(settings(tiny_model, tiny_facts, tmp_path, "f_learning", f_learning=halves, lora={"rank": 4}))
    forgot = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    with torch.no_grad():
        for name, weight in forgot.named_parameters():
            weight.copy_(theta(record, tiny_model, 1)[name])
    forgot.save_pretrained(tmp_path / "forgot")
    tiny.tokenizer().save_pretrained(tmp_path / "forgot")
    monkeypatch.setattr(Full, "round", lambda _, team, job, number: go_on(team, job, number + 1))
    name = "full" if learn == "full" else "lora"
    tuned = one_round(tmp_path / "forgot", tiny_facts, tmp_path, name, lora={"rank": 4})
    for name, weight in theta(record, tiny_model, 2).items():
        assert torch.equal(weight, tuned[name]), name


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


@pytest.mark.parametrize("method", ["ft_c", "ft_c-layer"])
def test_no_weight_leaves_the_bound(tiny_model: Path, tiny_facts: Path, tmp_path: Path, method: str) -> None:
    start = start_of(tiny_model)
    found = one_round(tiny_model, tiny_facts, tmp_path, method)
    moved = {name: (found[name] - start[name]).abs().max().item() for name in start}
    reached = [name for name, most in moved.items() if most > 0]
    # Both ends are fp32: start ± ε is rounded once.
    assert max(moved.values()) <= 1e-3 + 1e-7
    assert max(moved.values()) > 0.9e-3, "the bound is felt"
    assert len(reached) == (1 if method == "ft_c-layer" else len(start))
    if method == "ft_c-layer":
        assert reached == ["model.layers.1.mlp.down_proj.weight"]


def test_the_bound_holds_after_every_step_of_every_round_around_the_warmed_model(
    tiny_model: Path, tiny_facts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    furthest: list[float] = []
    hold = Engine._hold_to_limit

    def look(engine: Engine) -> None:
        hold(engine)
        base = tmp_path / "dft" / "base"
        if not base.exists():
            return  # the warm-up, which nothing bounds
        files, saved = Folder(base), {p.index: p.saved for p in parameters(base)}
        started = [files.flat(saved[f.parameter], f.start, f.stop) for f in engine.fragments]
        far = [(f.of(engine.masters) - b).abs().max() for f, b in zip(engine.fragments, started, strict=True)]
        furthest.append(float(max(far)))

    monkeypatch.setattr(Engine, "_hold_to_limit", look)
    rounds, warm = {"rounds": 3}, {"epochs": 1}
    record = runs.alone(settings(tiny_model, tiny_facts, tmp_path, "ft_c", method=rounds, warmup=warm))
    steps = [len(line["loss"]["new"]) for line in record.rounds[1:]]
    assert len(furthest) == sum(steps) and len(steps) == 3
    assert max(furthest) <= 1e-3 + 1e-7
    assert furthest[steps[0]] > 0.9e-3, "the bound is felt by the second round, which begins where the first ended"


@pytest.mark.usefixtures("cluster")
def test_the_bound_holds_when_the_weights_are_cut_up(tiny_model: Path, tiny_facts: Path, tmp_path: Path) -> None:
    """ZeRO-3 over two ranks: every rank holds its own share within the bound, and all of them together move as one did."""
    start = start_of(tiny_model)
    config = settings(
        tiny_model, tiny_facts, tmp_path, "ft_c",
        method={"rounds": 1}, train={"zero_stage": 3}, cluster={"groups": 1, "ranks_per_group": 2, "threads": 1},
    )  # fmt: skip
    found = theta(runs.on_cluster(config), tiny_model, 1)
    alone = one_round(tiny_model, tiny_facts, tmp_path, "ft_c")
    for name in start:
        assert 0 < (found[name] - start[name]).abs().max() <= 1e-3 + 1e-7
    near = torch.cat([(found[name] - alone[name]).abs().flatten() for name in start])
    assert near.quantile(0.95) < 2e-4, "the same training, added up in another order"


@pytest.mark.usefixtures("cluster")
def test_the_values_of_all_facts_are_sought_by_all_ranks(
    tiny_model: Path, tiny_facts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares: list[list[int]] = []
    start_each = ActorGroup.start_each

    def counted(group: ActorGroup, verb: Any, arguments: Any) -> Any:
        if verb.__name__ == "seek_values":
            shares.append([len(requests) for requests, *_ in arguments])
        return start_each(group, verb, arguments)

    monkeypatch.setattr(ActorGroup, "start_each", counted)
    pair = {"groups": 1, "ranks_per_group": 2, "threads": 1}
    runs.on_cluster(settings(tiny_model, tiny_facts, tmp_path, "memit", cluster=pair))
    assert shares == [[4, 4]], "eight facts"


@pytest.mark.parametrize("method", METHODS)
def test_the_command_takes_every_method(tiny_model: Path, tiny_facts: Path, tmp_path: Path, method: str) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(settings(tiny_model, tiny_facts, tmp_path, method).to_json()))
    assert main([str(file), "--check"]) == 0


@pytest.mark.parametrize("method", METHODS)
def test_facts_without_a_subject_are_fine_for_all_but_those_that_edit_at_it(
    tiny_model: Path, tiny_facts: Path, tmp_path: Path, method: str
) -> None:
    file = tmp_path / "bare.jsonl"
    records = [json.loads(line) for line in tiny_facts.read_text().splitlines()]
    file.write_text("".join(json.dumps({k: v for k, v in one.items() if k != "subject"}) + "\n" for one in records))
    wanted = settings(tiny_model, file, tmp_path, method)
    if method in ("rome", "memit"):
        with pytest.raises(InputError, match="subject"):
            prepare(wanted)
    else:
        assert len(prepare(wanted).facts) == len(records)


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(
    ("method", "stage"),
    [
        ("full", 2), ("lora", 2), ("f_learning", 2), ("rome", 2), ("memit", 2),
        ("interpolate", 3), ("f_learning-full-lora", 3), ("dft-lora", 3), ("random", 3),
    ],
)  # fmt: skip
def test_two_ranks_go_where_one_goes(
    tiny_model: Path, tiny_facts: Path, tmp_path: Path, method: str, stage: int
) -> None:
    """A group of two ranks, each with half of the work and of the weights, against one process."""
    found = []
    for ranks in (1, 2):
        config = settings(
            tiny_model, tiny_facts, tmp_path, method, run={"name": f"ranks-{ranks}"},
            train={**METHODS[method].get("train", {}), "zero_stage": stage},
            cluster={"groups": 1, "ranks_per_group": ranks, "threads": 1},
        )  # fmt: skip
        record = (runs.alone if ranks == 1 else runs.on_cluster)(config)
        found.append(flat(theta(record, tiny_model, config.method.rounds)))
    one, two = (weights - flat(start_of(tiny_model)) for weights in found)
    assert float(one.norm()) > 0
    # An element at the edge of a core may be in it here and not there.
    near = 0.1 if method == "dft-lora" else 0.02
    assert float((two - one).norm() / one.norm()) < near, "the same work, added up in another order"


@pytest.mark.usefixtures("cluster")
def test_what_needs_no_old_side_has_all_ranks_in_one_group(tiny_model: Path, tiny_facts: Path, tmp_path: Path) -> None:
    found = []
    for groups, ranks in ((2, 1), (1, 2)):
        shape = {"groups": groups, "ranks_per_group": ranks, "threads": 1}
        config = settings(tiny_model, tiny_facts, tmp_path, "full", cluster=shape, run={"name": f"{groups}x{ranks}"})
        record = runs.on_cluster(config)
        assert list(record.rounds[1]["memory"]) == ["rank-0", "rank-1"]
        found.append(theta(record, tiny_model, 2))
    for name, weight in found[0].items():
        assert torch.equal(weight, found[1][name]), name


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


@pytest.mark.parametrize("family", [name for name in tiny.ARCHITECTURES if name != "llama"])
def test_every_method_on_every_family(tiny_facts: Path, tmp_path: Path, family: str) -> None:
    """Whatever a family calls its parts: each method changes what it says it changes, and leaves a patch of it."""
    model = tiny.architecture(family, tmp_path / "model")
    start = start_of(model)
    for method in FAMILY_METHODS:
        rounds = {"rounds": 2 if method == "f_learning" else 1}
        quick = {"protocols": ["teacher_forced"]}
        run = {"name": f"run-{method}"}
        record = runs.alone(settings(model, tiny_facts, tmp_path, method, method=rounds, evaluate=quick, run=run))
        found = theta(record, model, rounds["rounds"])
        reached = {name for name in start if (found[name] != start[name]).any()}
        patch = tmp_path / f"run-{method}" / "patch.safetensors"
        apply(patch, model, tmp_path / f"{method}-out")
        for name, weight in start_of(tmp_path / f"{method}-out").items():
            assert torch.equal(weight, found[name]), f"{method}: {name}"
        if method == "lora":
            assert len(reached) == LINEAR_MAPS[family], "every linear map of attention and MLP"
        if "lora" in method:
            assert reached and all(found[n].ndim == 2 and (".0." in n or ".1." in n) for n in reached), method
        elif method in ("ft_c-layer", "rome"):
            assert len(reached) == 1, method
        elif method == "memit":
            assert 1 <= len(reached) <= 2, method
        else:
            assert len(reached) > len(start) / 2, method


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
    chosen = {"name": "memit", "layers": [0, 1, 2]}  # of the last block nothing reads what it gives at the subject
    # So little covariance that the keys of so small a model count beside it.
    editing = {**METHODS["memit"]["editing"], "covariance_weight": 0.5, "clamp": 20.0}
    record = runs.alone(settings(model, tiny_facts, tmp_path, "memit", method=chosen, train=train, editing=editing))
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


@pytest.mark.parametrize(
    ("method", "more", "said"),
    [
        ("full", {"lora": {"kinds": []}, "train": {"adapter": "lora"}}, "matches no module"),
        ("ft_c-layer", {"method": {"layers": [0, 2]}}, "layers are 0 to 1"),
        ("ft_c", {"method": {"layers": "trace"}}, "trace goes with rome and memit"),
        ("ft_c", {"train": {"adapter": "lora"}}, "bounds the weights themselves"),
        ("f_learning", {"train": {"adapter": "lora"}}, "f_learning.forget=lora"),
        ("f_learning", {"method": {"rounds": 1}}, "at least 2"),
        ("new", {"dft": {"add": "difference"}}, "dft.mask is new"),
        ("by-new", {"dft": {"add": "difference"}}, "dft.by new"),
        ("random", {"dft": {"by": "new"}}, "dft.by: dft.mask=random is ranked by itself"),
        ("random", {"dft": {"reuse": 2, "old_epochs": 1}}, "does without the old answers"),
        ("dft-lora", {"dft": {"scales": [1, 2]}}, "dft.scales: a line search"),
        ("scales", {"dft": {"rest": 0.3}}, "leave one of them out"),
        ("full", {"method": {"layers": [0]}}, "method.layers: goes with rome, memit and ft_c"),
        ("memit", {"editing": {"covariance": "/nowhere/text.txt"}}, "editing.covariance: no file"),
        ("rome", {"method": {"layers": [2]}}, "layers are 0 to 1"),
        ("memit", {"method": {"layers": [0, 5]}}, "layers are 0 to 1"),
        ("new", {"method": {"of": "conflicts"}}, "there are no conflicts to take a share of"),
        ("memit", {"train": {"rephrases": 2}}, "train.rephrases: memit is taught no texts; right would be 0"),
    ],
)
def test_what_cannot_be(tiny_model: Path, tiny_facts: Path, tmp_path: Path, method: str, more: Tree, said: str) -> None:
    with pytest.raises(InputError, match=said):
        prepare(settings(tiny_model, tiny_facts, tmp_path, method, **more))
