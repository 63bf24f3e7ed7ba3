"""DFT's variants and controls in whole runs: which elements they choose, what they add there, the same bits everywhere."""

from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from dft_cluster.facts.layout import Example
from dft_cluster.methods.prepare import prepare
from dft_cluster.planning.plan import training_sets
from dft_cluster.ranks.rank import Rank
from tests.integration import runs
from tests.integration.methods import METHODS, deltas, flat, one_round, settings, start_of, swapped, theta
from tests.integration.runs import Crash, crash_at


@torch.no_grad()
def greedy(model: Any, prompt: tuple[int, ...], most: int, ends: tuple[int, ...]) -> list[int]:
    """The argmax, one token after another."""
    said: list[int] = []
    while len(said) < most:
        token = int(model(input_ids=torch.tensor([[*prompt, *said]]), use_cache=False).logits[0, -1].argmax())
        if token in ends:
            break
        said.append(token)
    return said


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


def test_what_an_adapter_adapts_keeps_its_last_bits_from_round_to_round(
    tiny_model: Path, tiny_facts: Path, tmp_path: Path
) -> None:
    """Trained in bf16, whose working copy of the base is coarser than the base."""
    bf16 = {"lora": {"rank": 4}, "train": {"adapter": "lora", "precision": "bf16"}}
    record = runs.alone(settings(tiny_model, tiny_facts, tmp_path, "dft-lora", **bf16))
    start, found = start_of(tiny_model), theta(record, tiny_model, 2)
    kept = sum(line["core"]["kept"] for line in record.rounds[1:])
    changed = {name: found[name] != start[name] for name in start}
    assert 0 < sum(int(one.sum()) for one in changed.values()) <= kept
    coarse = sum(int((found[name] == found[name].bfloat16().float())[changed[name]].sum()) for name in start)
    assert coarse < 0.1 * kept, "what was added is not rounded either"


@pytest.mark.parametrize(
    ("mask", "scale"), [("new", 1), ("same", 1), ("by-new", 1), ("same-by-new", 1), ("new", 2), ("same", 2)]
)
def test_controls_and_rankings_choose_as_they_say(
    tiny_model: Path, tiny_facts: Path, tmp_path: Path, mask: str, scale: int
) -> None:
    start, old, new = deltas(tiny_model, tiny_facts, tmp_path)
    found = flat(
        one_round(
            tiny_model, tiny_facts, tmp_path, mask, method={"name": "dft", "top": 0.1, "scale": scale, "rounds": 1}
        )
    )
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
    expected[place] += scale * new[place]
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


def test_a_random_core_takes_as_much_of_every_tensor_and_adds_the_new_delta_there(
    tiny_model: Path, tiny_facts: Path, tmp_path: Path
) -> None:
    start, _, new = deltas(tiny_model, tiny_facts, tmp_path)
    twice = {"name": "dft", "top": 0.1, "scale": 2, "rounds": 1}
    weights = one_round(tiny_model, tiny_facts, tmp_path, "random", method=twice)
    found = flat(weights)
    chosen = found != start
    assert torch.equal(found[chosen], (start + 2 * new)[chosen])
    begin = 0
    for name, weight in weights.items():
        here = slice(begin, begin + weight.numel())
        moves = new[here] != 0
        begin += weight.numel()
        if int(moves.sum()) > 1000:
            share = float((chosen[here] & moves).sum() / moves.sum())
            assert 0.06 < share < 0.14, f"{name}: {share}"
    assert begin == len(start)


@pytest.mark.parametrize("of", ["all", "conflicts"])
@pytest.mark.parametrize("scope", ["global", "tensor"])
def test_the_share_is_of_what_it_says(tiny_model: Path, tiny_facts: Path, tmp_path: Path, scope: str, of: str) -> None:
    """T of all elements or of those in conflict, of the whole model or of each tensor."""
    start, old, new = deltas(tiny_model, tiny_facts, tmp_path)
    chosen = {"method": {"rounds": 1, "top": 0.3, "scope": scope, "of": of}}
    found = flat(one_round(tiny_model, tiny_facts, tmp_path, "dft", **chosen))
    conflict = ((new > 0) & (old < 0)) | ((new < 0) & (old > 0))
    score = torch.where(conflict, (new - old).abs(), 0.0)
    sizes = [w.numel() for w in start_of(tiny_model).values()] if scope == "tensor" else [start.numel()]
    core, begin = torch.zeros_like(conflict), 0
    for size in sizes:
        here = slice(begin, begin + size)
        among = int(conflict[here].sum())
        k = min(among, 3 * (among if of == "conflicts" else size) // 10)
        core[begin + torch.sort(score[here], descending=True, stable=True).indices[:k]] = True
        begin += size
    assert begin == start.numel() and 0 < int(core.sum()) < int(conflict.sum())
    assert torch.equal(found, torch.where(core, start + new, start))


@pytest.mark.parametrize("variant", ["difference", "rest"])
def test_what_is_added_at_the_core_and_elsewhere(
    tiny_model: Path, tiny_facts: Path, tmp_path: Path, variant: str
) -> None:
    start, old, new = deltas(tiny_model, tiny_facts, tmp_path)
    found = flat(one_round(tiny_model, tiny_facts, tmp_path, variant))
    conflict = ((new > 0) & (old < 0)) | ((new < 0) & (old > 0))
    score = torch.where(conflict, (new - old).abs(), 0.0)
    place = torch.sort(score, descending=True, stable=True).indices[: start.numel() // 10]
    expected = start + 0.3 * new if variant == "rest" else start.clone()
    expected[place] = (start + (new if variant == "rest" else new - old))[place]
    assert torch.equal(found, expected)


@pytest.mark.parametrize("variant", ["outside", "outside-same"])
def test_what_is_not_ranked_has_a_share_of_its_own(
    tiny_model: Path, tiny_facts: Path, tmp_path: Path, variant: str
) -> None:
    start, old, new = deltas(tiny_model, tiny_facts, tmp_path)
    found = flat(
        one_round(tiny_model, tiny_facts, tmp_path, variant, method={**METHODS[variant]["method"], "rounds": 1})
    )
    agree = ((new > 0) & (old > 0)) | ((new < 0) & (old < 0))
    conflict = ((new > 0) & (old < 0)) | ((new < 0) & (old > 0))
    ranked, score, scale, outside = {
        "outside": (conflict, (new - old).abs(), 2, 0.1),
        "outside-same": (agree, new.abs(), 1, 0.0),
    }[variant]
    score = torch.where(ranked, score, 0.0)
    place = torch.sort(score, descending=True, stable=True).indices[: start.numel() // 10]
    share = torch.where(ranked, 0.3, outside)
    expected = new * share + start
    expected[place] = (scale * new + start)[place]
    assert torch.equal(found, expected)
    assert int((ranked & (expected != start)).sum()) > len(place) < int((~ranked & (new != 0)).sum())


@pytest.mark.usefixtures("cluster")
def test_two_groups_under_an_adapter_give_the_bits_of_one(tiny_model: Path, tiny_facts: Path, tmp_path: Path) -> None:
    one = runs.alone(settings(tiny_model, tiny_facts, tmp_path, "dft-lora", run={"name": "one"}))
    pair = {"groups": 2, "ranks_per_group": 1, "threads": 1}
    two = runs.on_cluster(settings(tiny_model, tiny_facts, tmp_path, "dft-lora", run={"name": "two"}, cluster=pair))
    assert runs.parts(one, 2) == runs.parts(two, 2)


def test_an_old_delta_used_again_is_that_of_the_round_before(
    tiny_model: Path, tiny_facts: Path, tmp_path: Path
) -> None:
    record = runs.alone(settings(tiny_model, tiny_facts, tmp_path, "reuse", method={"rounds": 3}))
    assert [sorted(line["loss"]) for line in record.rounds[1:]] == [["new", "old"], ["new"], ["new", "old"]]
    assert 2 * len(record.rounds[1]["loss"]["old"]) == len(record.rounds[1]["loss"]["new"]), "one epoch of two"
    zero, one, two = (flat(theta(record, tiny_model, n)) for n in range(3))
    old = flat(one_round(tiny_model, swapped(tiny_facts, tmp_path), tmp_path, "full", train={"epochs": 1})) - zero
    assert (two != one).any()
    assert ((two - one)[two != one] * old[two != one] <= 0).all(), "round 2 conflicts with the delta of round 1"


@pytest.mark.parametrize("contexts", [0, 1])
def test_renewed_old_answers_are_what_the_model_says_then(
    tiny_model: Path, tiny_facts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, contexts: int
) -> None:
    """The old side's examples of each round, against greedy decoding by other hands of θ as the round before left it: to
    every wording, and without an end where the model was cut off."""
    taught: dict[int, list[Example]] = {}
    tune = Rank.fine_tune

    @wraps(tune)
    def tuned(rank: Rank, examples: Any, pad: int, number: int, side: str, *rest: Any) -> Any:
        if side == "old":
            taught[number] = list(examples)
        return tune(rank, examples, pad, number, side, *rest)

    monkeypatch.setattr(Rank, "fine_tune", tuned)
    own_end = {"contexts": contexts, "eos": True}
    chosen = settings(tiny_model, tiny_facts, tmp_path, "renew", evaluate={"max_new_tokens": 1}, train=own_end)
    record = runs.alone(chosen)
    ready = prepare(chosen)
    before_it = record.storage.read_json("drawn.json")["contexts"] if contexts else []
    asked = [
        (prompt, f) for f in ready.facts for prompt in [f.prompt, *(f"{context}. {f.prompt}" for context in before_it)]
    ]
    most = 1 + max(ready.layout.example(f.prompt, f.new).targets for f in ready.facts)
    assert sorted(taught) == [1, 2]
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    said: list[list[Example]] = []
    for number in taught:
        before = theta(record, tiny_model, number - 1)
        for name, weight in model.named_parameters():
            weight.data.copy_(before[name])
        found = [greedy(model, ready.layout.prompt(prompt), most, ready.layout.ends) for prompt, _ in asked]
        answers = [ready.layout.line(ids) for ids in found]
        cut = [len(ids) == most and not ready.layout.holds_a_line(ids) for ids in found]
        said.append([
            ready.layout.example(prompt, own or f.old, eos=not (own and short))
            for (prompt, f), own, short in zip(asked, answers, cut, strict=True)
        ])  # fmt: skip
        assert taught[number] == said[-1]
        assert sum(own not in ("", f.old) for (_, f), own in zip(asked, answers, strict=True)) > len(answers) / 2
        assert any(cut)
    assert said[0] != said[1], "what the first round taught is said in the second"


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("variant", ["reuse", "scales", "drawn", "renew", "rest", "rest-lora", "outside", "by-new"])
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


@pytest.mark.usefixtures("cluster")
def test_an_old_delta_that_is_kept_comes_back_with_the_side_that_scores(
    tiny_model: Path, tiny_facts: Path, tmp_path: Path
) -> None:
    """Two groups, killed before the round that uses it again."""
    pair = {"groups": 2, "ranks_per_group": 1, "threads": 1}
    broken = settings(tiny_model, tiny_facts, tmp_path, "reuse", run={"name": "broken"}, cluster=pair)
    with pytest.raises(Crash):
        runs.on_cluster(broken, crash_at("round 2"))
    again = runs.on_cluster(broken)
    whole = runs.alone(settings(tiny_model, tiny_facts, tmp_path, "reuse", run={"name": "whole"}))
    assert [runs.parts(again, n) for n in (1, 2)] == [runs.parts(whole, n) for n in (1, 2)]


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("answers", ["greedy", "drawn"])
def test_the_models_own_answers_to_other_prompts_are_taught_on_both_sides(
    tiny_model: Path, tiny_facts: Path, tmp_path: Path, answers: str
) -> None:
    """From the base, in the order of the file; two groups give the bits of one, and the plan knows their length."""
    prompts = ["Snow is", "The sea, as they say, is", "Water is"]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts))
    file = str(tmp_path / "prompts.txt")
    kept = {"train": {"keep": 3, "keep_tokens": 4, "keep_prompts": file, "keep_answers": answers}}
    chosen = settings(tiny_model, tiny_facts, tmp_path, "by-new", run={"name": "one"}, **kept)
    one = runs.alone(chosen)
    pair = {"groups": 2, "ranks_per_group": 1, "threads": 1}
    two = runs.on_cluster(
        settings(tiny_model, tiny_facts, tmp_path, "by-new", run={"name": "two"}, cluster=pair, **kept)
    )
    assert [runs.parts(one, n) for n in (1, 2)] == [runs.parts(two, n) for n in (1, 2)]

    layout = prepare(chosen).layout
    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    found = one.storage.read_json("drawn.json")["keep"]
    assert [layout.text(ids[:given]) for given, ids in found] == prompts
    likeliest = [
        [int(token) for token in model(torch.tensor([ids[:-1]])).logits[0, given - 1 :].argmax(-1)]
        for given, ids in found
    ]
    said = [ids[given:] for given, ids in found]
    assert all(0 < len(answer) <= 4 for answer in said)
    if answers == "greedy":
        assert said == likeliest
    else:
        assert [len(answer) for answer in said] == [4, 4, 4]
        drawn, best = (torch.tensor(tokens) for tokens in (said, likeliest))
        assert (drawn != best).sum() > 6, "a model that knows nothing seldom says what is likeliest"
    planned = training_sets(prepare(chosen).seat(1))
    assert [len(e.ids) - e.start for e in planned[0][-3:]] == [4, 4, 4]
    assert [e.start for side in planned for e in side[-3:]] == [given for given, _ in found] * 2


def test_a_line_search_takes_the_smallest_of_the_best(tiny_model: Path, tiny_facts: Path, tmp_path: Path) -> None:
    """Half of the core is too little here, and twice as much too much."""
    method, train = {"rounds": 1, "top": 1}, {"lr": 6e-3, "epochs": 16}
    searched = runs.alone(settings(tiny_model, tiny_facts, tmp_path, "scales", method=method, train=train)).rounds[1]
    exact = {}
    for one in (0.5, 1.0, 2.0):
        alone = {"method": {**method, "scale": one}, "dft": {"scales": []}, "run": {"name": f"s{one}"}}
        fixed = settings(tiny_model, tiny_facts, tmp_path, "scales", train=train, **alone)
        exact[one] = runs.alone(fixed).rounds[1]["reliability"]["exact"]
    assert len(set(exact.values())) > 1
    assert searched["core"]["scale"] == min(one for one in exact if exact[one] == max(exact.values()))
    assert searched["reliability"]["exact"] == max(exact.values())
