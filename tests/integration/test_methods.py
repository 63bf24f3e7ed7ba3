"""Every method through the whole run: its defining equation, the patch it leaves, and going on after a crash."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from dft_cluster.errors import InputError
from dft_cluster.methods.prepare import prepare
from dft_cluster.models.source import cache_folder
from dft_cluster.patch import Folder, apply, fingerprint, inspect
from dft_cluster.runs.parts import Part
from dft_cluster.runs.record import Record
from tests import tiny
from tests.integration import runs
from tests.integration.test_rounds import Crash, crash_at

ONE = {"groups": 1, "ranks_per_group": 1, "threads": 1}
Tree = dict[str, dict[str, Any]]

EDITING = {"steps": 5, "contexts": 2, "key_contexts": 3, "context_tokens": 3}

METHODS: dict[str, Tree] = {
    "dft": {"method": {"name": "dft", "top": 0.1}},
    "full": {"method": {"name": "full"}},
    "lora": {"method": {"name": "lora"}, "lora": {"rank": 4}},
    "dft-lora": {"method": {"name": "dft", "top": 0.1}, "train": {"adapter": "lora"}},
    "ft_c": {"method": {"name": "ft_c"}, "ft_c": {"epsilon": 1e-3}},
    "ft_c-layer": {"method": {"name": "ft_c", "layers": [1]}, "ft_c": {"epsilon": 1e-3}},
    "f_learning": {"method": {"name": "f_learning"}},
    "f_learning-lora-full": {"method": {"name": "f_learning"}, "f_learning": {"forget": "lora"}},
    "f_learning-full-lora": {"method": {"name": "f_learning"}, "f_learning": {"learn": "lora"}},
    "f_learning-lora-lora": {"method": {"name": "f_learning"}, "f_learning": {"forget": "lora", "learn": "lora"}},
    "rome": {"method": {"name": "rome"}, "editing": EDITING},
    "memit": {"method": {"name": "memit"}, "editing": EDITING},
    "interpolate": {"method": {"name": "interpolate"}},
    "interpolate-lora": {"method": {"name": "interpolate"}, "train": {"adapter": "lora"}},
    "random": {"method": {"name": "dft", "top": 0.1}, "dft": {"mask": "random"}},
    "new": {"method": {"name": "dft", "top": 0.1}, "dft": {"mask": "new"}},
    "same": {"method": {"name": "dft", "top": 0.1}, "dft": {"mask": "same"}},
    "by-new": {"method": {"name": "dft", "top": 0.1}, "dft": {"by": "new"}},
    "same-by-new": {"method": {"name": "dft", "top": 0.1}, "dft": {"mask": "same", "by": "new"}},
    "reuse": {"method": {"name": "dft", "top": 0.1}, "dft": {"reuse": 2, "old_epochs": 1}},
    "scales": {"method": {"name": "dft", "top": 0.1}, "dft": {"scales": [0.5, 1, 2]}},
    "renew": {"method": {"name": "dft", "top": 0.1}, "dft": {"renew": True}},
    "drawn": {
        "method": {"name": "dft", "top": 0.1},
        "train": {"rephrases": 1, "contexts": 2, "keep": 4, "keep_tokens": 5},
    },
    "rest": {"method": {"name": "dft", "top": 0.1}, "dft": {"rest": 0.3, "reuse": 2}},
    "rest-lora": {"method": {"name": "dft", "top": 0.1}, "train": {"adapter": "lora"}, "dft": {"rest": 0.3}},
    "difference": {"method": {"name": "dft", "top": 0.1}, "dft": {"add": "difference"}},
}

FAMILY_METHODS = (
    "dft", "dft-lora", "random", "new", "same", "full", "lora", "ft_c", "ft_c-layer", "f_learning", "interpolate", "rome",
    "memit",
)  # fmt: skip


def settings(model: Path, facts: Path, folder: Path, named: str, /, **more: dict[str, Any]) -> Any:
    tree: Tree = {"cluster": ONE, **METHODS[named]}
    for name, section in more.items():
        tree[name] = {**tree.get(name, {}), **section}
    rounds = {} if named in ("rome", "memit") else {"rounds": 2}
    tree["method"] = {**rounds, **tree["method"]}
    return runs.config(model, facts, folder, **tree)


def theta(record: Record, model: Path, number: int) -> dict[str, torch.Tensor]:
    """θ after a round, by parameter, out of the run's own checkpoints."""
    base, found = Folder(model), {}
    chain = record.checkpoints.chain(number) if number else []
    parts = [Part(record.storage.fetch(name, model)) for names in chain for name in names]
    for p in prepare(record.config).parameters:
        found[p.name] = base.flat(p.saved, 0, p.numel).clone()
        for part in parts:
            part.overlay(p.index, 0, found[p.name])
        found[p.name] = found[p.name].reshape(p.shape)
    return found


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


def one_round(model: Path, facts: Path, folder: Path, named: str, /, **more: dict[str, Any]) -> dict[str, torch.Tensor]:
    """θ after round 1 of a run of its own."""
    name = {"run": {"name": f"{named}-{len(list(folder.glob('*')))}"}}
    tree = settings(model, facts, folder, named, **{"method": {"rounds": 1}, **name, **more})
    return theta(runs.alone(tree), model, 1)


def swapped(facts: Path, folder: Path) -> Path:
    """The same facts with old and new answer changed about: plain fine-tuning on them is training on the old ones."""
    lines = [json.loads(line) for line in facts.read_text().splitlines()]
    for line in lines:
        line["target_new"], line["target_old"] = line["target_old"], line["target_new"]
    file = folder / "swapped.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def flat(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([w.flatten() for w in weights.values()])


def start_of(model: Path) -> dict[str, torch.Tensor]:
    return {
        n: w.detach() for n, w in AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).named_parameters()
    }


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


def test_learning_after_forgetting_is_plain_fine_tuning_from_there(
    tiny_model: Path, tiny_facts: Path, tmp_path: Path
) -> None:
    """The forgotten model exported, and fine-tuned by a run of its own from the same round on."""
    record = runs.alone(settings(tiny_model, tiny_facts, tmp_path, "f_learning", f_learning={"scale": 0.2}))
    forgot = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    with torch.no_grad():
        for name, weight in forgot.named_parameters():
            weight.copy_(theta(record, tiny_model, 1)[name])
    forgot.save_pretrained(tmp_path / "forgot")
    tiny.tokenizer().save_pretrained(tmp_path / "forgot")
    losses = runs.alone(settings(tmp_path / "forgot", tiny_facts, tmp_path, "full", run={"name": "f"})).rounds[1][
        "loss"
    ]
    # Another order of the facts (it depends on the round), the same start: the first batches' mean differs, the facts do not.
    assert sum(record.rounds[2]["loss"]["new"]) == pytest.approx(sum(losses["new"]), rel=0.05)


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


def test_the_delicate_step_under_an_adapter_is_the_formula(tiny_model: Path, tiny_facts: Path, tmp_path: Path) -> None:
    """The core over the merged products of two adapters that began alike."""
    lora = {"lora": {"rank": 4}, "train": {"adapter": "lora"}}
    start = start_of(tiny_model)
    new = one_round(tiny_model, tiny_facts, tmp_path, "lora", **lora)
    old = one_round(tiny_model, swapped(tiny_facts, tmp_path), tmp_path, "lora", **lora)
    found = one_round(tiny_model, tiny_facts, tmp_path, "dft-lora", **lora)
    adapted = [name for name in start if (new[name] != start[name]).any()]
    assert len(adapted) == 2 * 7, "every linear map of attention and MLP, nothing else"
    first, d_new, d_old = (torch.cat([w[n].flatten() for n in adapted]) for w in (start, new, old))
    d_new, d_old = d_new - first, d_old - first
    k = first.numel() // 10
    score = torch.where((d_new > 0) != (d_old > 0), (d_new - d_old).abs(), 0.0)
    place = torch.sort(score, descending=True, stable=True).indices[:k]
    expected = first.clone()
    expected[place] += d_new[place]
    core = torch.cat([found[n].flatten() for n in adapted])
    same = (core != first) == (expected != first)
    assert same.double().mean() > 0.999, "Δ is θ + Δ rounded less θ here, so that the last places of the cut may differ"
    torch.testing.assert_close(core[same], expected[same], rtol=0, atol=1e-7)


@pytest.mark.parametrize("mask", ["new", "same", "by-new", "same-by-new"])
def test_controls_and_rankings_choose_as_they_say(
    tiny_model: Path, tiny_facts: Path, tmp_path: Path, mask: str
) -> None:
    start = flat(start_of(tiny_model))
    new = flat(one_round(tiny_model, tiny_facts, tmp_path, "full")) - start
    old = flat(one_round(tiny_model, swapped(tiny_facts, tmp_path), tmp_path, "full")) - start
    found = flat(one_round(tiny_model, tiny_facts, tmp_path, mask))
    agree = ((new > 0) & (old > 0)) | ((new < 0) & (old < 0))
    conflict = ((new > 0) & (old < 0)) | ((new < 0) & (old > 0))
    score = {
        "new": new.abs(),
        "same": torch.where(agree, (new + old).abs(), 0.0),
        "by-new": torch.where(conflict, new.abs(), 0.0),
        "same-by-new": torch.where(agree, new.abs(), 0.0),
    }[mask]
    place = torch.sort(score, descending=True, stable=True).indices[: start.numel() // 10]
    expected = start.clone()
    expected[place] += new[place]
    assert torch.equal(found, expected)


def test_a_random_core_has_as_many_elements_and_other_ones_every_round(
    tiny_model: Path, tiny_facts: Path, tmp_path: Path
) -> None:
    record = runs.alone(settings(tiny_model, tiny_facts, tmp_path, "random"))
    zero, one, two = (flat(theta(record, tiny_model, n)) for n in range(3))
    k = zero.numel() // 10
    assert [line["core"]["kept"] for line in record.rounds[1:]] == [k, k]
    first, second = one != zero, two != one
    assert 0.8 * k < int(first.sum()) <= k, "all but those whose Δ is nothing"
    both = int((first & second).sum())
    assert 0.05 * k < both < 0.2 * k, "a tenth of a tenth"


@pytest.mark.parametrize("variant", ["difference", "rest"])
def test_what_is_added_at_the_core_and_elsewhere(
    tiny_model: Path, tiny_facts: Path, tmp_path: Path, variant: str
) -> None:
    start = flat(start_of(tiny_model))
    new = flat(one_round(tiny_model, tiny_facts, tmp_path, "full")) - start
    old = flat(one_round(tiny_model, swapped(tiny_facts, tmp_path), tmp_path, "full")) - start
    found = flat(one_round(tiny_model, tiny_facts, tmp_path, variant))
    conflict = ((new > 0) & (old < 0)) | ((new < 0) & (old > 0))
    score = torch.where(conflict, (new - old).abs(), 0.0)
    place = torch.sort(score, descending=True, stable=True).indices[: start.numel() // 10]
    expected = start + 0.3 * new if variant == "rest" else start.clone()
    expected[place] = (start + (new if variant == "rest" else new - old))[place]
    assert torch.equal(found, expected)


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
@pytest.mark.parametrize("method", ["full", "lora", "f_learning", "interpolate", "rome", "memit"])
def test_two_ranks_go_where_one_goes(tiny_model: Path, tiny_facts: Path, tmp_path: Path, method: str) -> None:
    """A group of two ranks under ZeRO-2, each with half of the work and of the weights, against one process."""
    found = []
    for ranks in (1, 2):
        # A covariance measured by the one must not be found by the other.
        shutil.rmtree(cache_folder() / "covariance", ignore_errors=True)
        config = settings(
            tiny_model, tiny_facts, tmp_path, method, run={"name": f"ranks-{ranks}"},
            train={"zero_stage": 2}, cluster={"groups": 1, "ranks_per_group": ranks, "threads": 1},
        )  # fmt: skip
        record = (runs.alone if ranks == 1 else runs.on_cluster)(config)
        found.append(flat(theta(record, tiny_model, config.method.rounds)))
    one, two = (weights - flat(start_of(tiny_model)) for weights in found)
    assert float(one.norm()) > 0
    assert float((two - one).norm() / one.norm()) < 0.02, "the same work, added up in another order"


@pytest.mark.usefixtures("cluster")
def test_two_groups_under_an_adapter_give_the_bits_of_one(tiny_model: Path, tiny_facts: Path, tmp_path: Path) -> None:
    one = runs.alone(settings(tiny_model, tiny_facts, tmp_path, "dft-lora", run={"name": "one"}))
    pair = {"groups": 2, "ranks_per_group": 1, "threads": 1}
    two = runs.on_cluster(settings(tiny_model, tiny_facts, tmp_path, "dft-lora", run={"name": "two"}, cluster=pair))
    assert runs.parts(one, 2) == runs.parts(two, 2)


@pytest.mark.parametrize("family", [name for name in tiny.ARCHITECTURES if name != "llama"])
def test_every_method_on_every_family(tiny_facts: Path, tmp_path: Path, family: str) -> None:
    """Whatever a family calls its parts: each method changes what it says it changes, and leaves a patch of it."""
    model = tiny.architecture(family, tmp_path / "model")
    start = start_of(model)
    for method in FAMILY_METHODS:
        rounds = {"rounds": 2 if method == "f_learning" else 1}
        quick = {"protocols": ["teacher_forced"]}
        found = one_round(model, tiny_facts, tmp_path, method, method=rounds, evaluate=quick)
        reached = {name for name in start if (found[name] != start[name]).any()}
        if "lora" in method:
            assert reached and all(found[n].ndim == 2 and (".0." in n or ".1." in n) for n in reached), method
        elif method in ("ft_c-layer", "rome"):
            assert len(reached) == 1, method
        elif method == "memit":
            assert 1 <= len(reached) <= 2, method
        else:
            assert len(reached) > len(start) / 2, method


def test_an_old_delta_used_again_is_that_of_the_round_before(
    tiny_model: Path, tiny_facts: Path, tmp_path: Path
) -> None:
    record = runs.alone(settings(tiny_model, tiny_facts, tmp_path, "reuse", method={"rounds": 3}))
    assert [sorted(line["loss"]) for line in record.rounds[1:]] == [["new", "old"], ["new"], ["new", "old"]]
    assert 2 * len(record.rounds[1]["loss"]["old"]) == len(record.rounds[1]["loss"]["new"]), "one epoch of two"
    zero, one, two = (flat(theta(record, tiny_model, n)) for n in range(3))
    old = flat(one_round(tiny_model, swapped(tiny_facts, tmp_path), tmp_path, "full", train={"epochs": 1})) - zero
    assert ((two - one)[two != one] * old[two != one] <= 0).all(), "round 2 conflicts with the delta of round 1"


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("variant", ["reuse", "scales", "drawn", "renew", "rest", "rest-lora", "by-new"])
def test_variants_on_two_groups_give_the_bits_of_one(
    tiny_model: Path, tiny_facts: Path, tmp_path: Path, variant: str
) -> None:
    one = runs.alone(settings(tiny_model, tiny_facts, tmp_path, variant, run={"name": "one"}))
    pair = {"groups": 2, "ranks_per_group": 1, "threads": 1}
    two = runs.on_cluster(settings(tiny_model, tiny_facts, tmp_path, variant, run={"name": "two"}, cluster=pair))
    assert [runs.parts(one, n) for n in (1, 2)] == [runs.parts(two, n) for n in (1, 2)]
    drawing = [number for number in (1, 2) if one.rounds[number]["seconds"].get("draw", 0.0) > 0]
    assert drawing == {"drawn": [1], "renew": [1, 2]}.get(variant, []), (
        "what the model writes for its training costs time, too"
    )


def test_a_line_search_takes_the_smallest_of_the_best(tiny_model: Path, tiny_facts: Path, tmp_path: Path) -> None:
    record = runs.alone(settings(tiny_model, tiny_facts, tmp_path, "scales", method={"rounds": 1}))
    scale = record.rounds[1]["core"]["scale"]
    exact = {}
    for one in (0.5, 1.0, 2.0):
        alone = settings(
            tiny_model,
            tiny_facts,
            tmp_path,
            "scales",
            dft={"scales": []},
            method={"rounds": 1, "scale": one},
            run={"name": f"s{one}"},
        )
        exact[one] = runs.alone(alone).rounds[1]["reliability"]["exact"]
    assert scale == min(one for one in exact if exact[one] == max(exact.values()))


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
    ],
)
def test_what_cannot_be(tiny_model: Path, tiny_facts: Path, tmp_path: Path, method: str, more: Tree, said: str) -> None:
    with pytest.raises(InputError, match=said):
        prepare(settings(tiny_model, tiny_facts, tmp_path, method, **more))
