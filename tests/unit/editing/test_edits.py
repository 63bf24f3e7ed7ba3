"""ROME and MEMIT as a rank does them, on tiny random models of every architecture."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from dft_cluster.arithmetic.closed_form import closed_form
from dft_cluster.config_file import validate
from dft_cluster.editing.anatomy import Anatomy
from dft_cluster.editing.covariance import Covariance
from dft_cluster.editing.requests import request, subjects
from dft_cluster.editing.values import Place
from dft_cluster.errors import InputError
from dft_cluster.facts.layout import Layout
from dft_cluster.facts.readers import read
from dft_cluster.methods import editing
from dft_cluster.methods.job import Job
from dft_cluster.methods.memit import Memit
from dft_cluster.methods.rome import Rome
from dft_cluster.models.mlp import down_projections
from dft_cluster.models.structure import Parameter, parameters, skeleton
from dft_cluster.ranks.editing import Editing
from dft_cluster.ranks.rank import Source
from dft_cluster.training.shards import Fragment
from tests import tiny


class Seat(Editing):
    """A rank's part of editing without DeepSpeed: the masters cut unevenly, as sharding would cut them."""

    def __init__(self, folder: Path, updated: Sequence[Parameter], cuts: int = 3) -> None:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        named = dict(model.named_parameters())
        masters, fragments = [], []
        for p in updated:
            flat = named[p.name].detach().flatten().clone()
            for cut in torch.arange(p.numel).tensor_split(cuts):
                first, stop = int(cut[0]), int(cut[-1]) + 1
                fragments.append(Fragment(p.index, first, stop - first, len(masters), 2))
                masters.append(torch.cat([torch.full((2,), torch.nan), flat[first:stop]]))

        def push() -> None:
            by_index = {p.index: named[p.name] for p in updated}
            for f in fragments:
                by_index[f.parameter].data.view(-1)[f.start : f.stop] = f.of(masters)

        self.parameters = list(updated)
        self._progress = ("", 0, 0, 0.0)
        self._engine = SimpleNamespace(
            module=model, masters=masters, fragments=fragments, push=push, device=torch.device("cpu"),
            place=SimpleNamespace(rank=0, world=1),
        )  # fmt: skip


@pytest.fixture(params=tiny.ARCHITECTURES)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tiny.architecture(request.param, tmp_path / "model")


def seat(folder: Path) -> Seat:
    names = {place.weight for place in down_projections(skeleton(folder))}
    return Seat(folder, [p for p in parameters(folder) if p.name in names])


def second_moment(width: int) -> Covariance:
    keys = torch.randn(5 * width, width)
    return Covariance(keys.T @ keys / len(keys), len(keys), 0.0)


def weight_of(anatomy: Anatomy, layer: int) -> torch.Tensor:
    """The down-projection's weight as [hidden, inner], however it is stored."""
    stored: Any = anatomy.downs[layer].weight
    return stored.detach().T if anatomy.places[layer].stored_in_out else stored.detach()


def test_rome_gives_the_value_by_a_change_of_rank_one(folder: Path) -> None:
    torch.manual_seed(0)
    rank = seat(folder)
    anatomy = Anatomy(rank._engine.module)
    place, down = anatomy.places[1], anatomy.downs[1]
    before = weight_of(anatomy, 1).clone()
    others = {n: w.detach().clone() for n, w in anatomy.model.named_parameters() if n != place.weight}
    rank._covariances = {1: second_moment(place.inner)}
    key, value = torch.randn(place.inner), torch.randn(place.hidden)
    given = rank.map_key(1, key)
    torch.testing.assert_close(given, before.double() @ key.double(), rtol=1e-10, atol=1e-12)
    solved = rank.solve_rank_one(1, key, given, value)
    assert solved is not None
    rank.edit(1, *solved)
    torch.testing.assert_close(down(key[None])[0], value, rtol=1e-4, atol=1e-4)
    values = torch.linalg.svdvals((weight_of(anatomy, 1) - before).double())
    assert float(values[1] / values[0]) < 1e-5
    assert all(torch.equal(w, others[n]) for n, w in anatomy.model.named_parameters() if n != place.weight)


def test_memit_is_the_closed_form(folder: Path) -> None:
    torch.manual_seed(0)
    rank = seat(folder)
    anatomy = Anatomy(rank._engine.module)
    place, before = anatomy.places[0], weight_of(anatomy, 0).clone()
    known = second_moment(place.inner)
    rank._covariances = {0: known}
    keys, missing = torch.randn(place.inner, 4), torch.randn(place.hidden, 4)
    solved = rank.solve_closed_form(0, keys, 20.0)
    assert solved is not None
    rank.edit(0, missing, solved)
    second = 20 * known.solid() + keys.double() @ keys.double().T
    wanted = missing.double() @ keys.double().T @ torch.linalg.inv(second)
    torch.testing.assert_close((weight_of(anatomy, 0) - before).double(), wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        missing.double() @ closed_form(20 * known.solid(), keys).T, wanted, rtol=1e-8, atol=1e-10
    )


class Alone:
    """A group of one seat."""

    size = 1

    def __init__(self, rank: Seat) -> None:
        self._rank = rank

    def call(self, verb: Any, *arguments: Any) -> list[Any]:
        return [getattr(self._rank, verb.__name__)(*arguments)]

    def each(self, verb: Any, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        [own] = arguments
        return self.call(verb, *own)


def job(folder: Path, facts: Path, name: str, said: list[str], count: int = 5, **sections: Any) -> Job:
    tree = {
        "method": {"name": name, "layers": [0], "rounds": 1} | sections.pop("method", {}),
        "train": {"precision": "fp32"},
        "editing": {"contexts": 2, "key_contexts": 3, "context_tokens": 3, "batch": 3, "clamp": 20.0},
        **sections,
    }
    config = validate(tree)
    return Job(
        config, parameters(folder), read(str(facts)).facts[:count], Layout(tiny.tokenizer()), folder,
        Source(config.model), say=said.append, note=said.append,
    )  # fmt: skip


@pytest.mark.parametrize("method", [Rome, Memit])
@pytest.mark.parametrize("chosen", [[0], "trace", "auto"])
def test_a_round_makes_the_new_answers_likelier(
    method: Any, chosen: Any, folder: Path, tiny_facts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DFT_CACHE", str(tmp_path / "cache"))
    # Edits of a tiny random model get in each other's way when they are made one after the other.
    count = 1 if method is Rome and chosen == [0] else 5

    def one_round(said: list[str]) -> tuple[Seat, Job, Any, float]:
        work = job(folder, tiny_facts, method.__name__.lower(), said, count, method={"layers": chosen})
        one = method(work.config)
        one.check(work)
        rank = Seat(folder, one.weights(work.config, folder, work.parameters))
        before = nll(rank, work)
        return rank, work, one.round(SimpleNamespace(everyone=Alone(rank)), work, 1), before

    def nll(rank: Seat, work: Job) -> float:
        total = 0.0
        for fact in work.facts:
            e = work.layout.example(fact.prompt, fact.new, eos=False)
            with torch.no_grad():
                logits = rank._engine.module(input_ids=torch.tensor([e.ids])).logits[0].log_softmax(-1)
            total -= float(logits[e.start - 1 : -1].gather(1, torch.tensor(e.answer)[:, None]).sum())
        return total

    said: list[str] = []
    rank, work, outcome, before = one_round(said)
    assert len(outcome.loss["new"]) == count and outcome.tokens["new"] > 0 and outcome.seconds["new"] > 0
    if chosen == [0] or method is Memit:
        assert nll(rank, work) < before
    assert any("facts' prompts" in line for line in said)
    assert any("causal tracing" in line for line in said) == (chosen == "trace")

    again: list[str] = []
    fresh, _, second, _ = one_round(again)
    assert not outcome.elsewhere
    assert 0 < second.elsewhere["covariance"] <= outcome.seconds["covariance"]
    assert any("kept from an earlier run" in line for line in again)
    assert all(torch.equal(a[2:], b[2:]) for a, b in zip(rank._engine.masters, fresh._engine.masters, strict=True))


@pytest.mark.parametrize(("best", "warned"), [(0.0002, True), (0.2, False)])
def test_tracing_that_brings_nothing_back_is_warned_of(
    best: float, warned: bool, tiny_model: Path, tiny_facts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Seat, "trace", lambda _, asked: [best * len(asked), 0.0])
    said: list[str] = []
    work = job(tiny_model, tiny_facts, "rome", said, method={"layers": "trace"})
    team: Any = SimpleNamespace(everyone=Alone(seat(tiny_model)))
    assert Rome(work.config).layers(team, work) == [0]
    assert any(line.startswith("warning: that is next to nothing") for line in said) == warned


def test_a_covariance_that_another_method_measured_costs_the_one_pass_that_it_took(
    tiny_facts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DFT_CACHE", str(tmp_path / "cache"))
    folder = tiny.model(tmp_path / "model", layers=3)
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(tiny.NEW), encoding="utf-8")

    def elsewhere(method: Any, chosen: list[int]) -> float:
        work = job(
            folder, tiny_facts, method.__name__.lower(), [], 2, method={"layers": chosen},
            editing={"covariance": str(text), "contexts": 2, "key_contexts": 3, "context_tokens": 3, "steps": 2},
        )  # fmt: skip
        one = method(work.config)
        rank = Seat(folder, one.weights(work.config, folder, work.parameters))
        outcome = one.round(SimpleNamespace(everyone=Alone(rank)), work, 1)
        spent.append(outcome.seconds["covariance"])
        return float(outcome.elsewhere.get("covariance", 0.0))

    spent: list[float] = []
    assert elsewhere(Memit, [0]) == 0
    [file] = (tmp_path / "cache" / "covariance").iterdir()
    save_file(load_file(file) | {"pass_seconds": torch.tensor(1000.0)}, file)
    assert elsewhere(Rome, [0]) == 1000
    # Layer 1 takes a pass of its own, which would have measured layer 0 as well.
    both = elsewhere(Memit, [0, 1])
    assert 1000 - spent[-1] <= both < 1000
    assert elsewhere(Memit, [0, 1]) == 1000


@pytest.mark.parametrize("wrong", ["no folder", "no room"])
def test_a_covariance_that_cannot_be_kept_is_told_and_used(
    wrong: str, tiny_model: Path, tiny_facts: Path, tmp_path: Path, request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The pass over the text has been paid for: the edit is the one that a cache would have seen."""
    if wrong == "no room":
        cache = request.getfixturevalue("small_disk")
        with suppress(OSError):
            (cache / "other").write_bytes(bytes(200_000))
    else:
        cache = tmp_path / "taken"
        cache.write_text("a file")

    def edited(said: list[str]) -> list[torch.Tensor]:
        work = job(tiny_model, tiny_facts, "memit", said, 2)
        one = Memit(work.config)
        rank = Seat(tiny_model, one.weights(work.config, tiny_model, work.parameters))
        one.round(SimpleNamespace(everyone=Alone(rank)), work, 1)
        return [weight[2:] for weight in rank._engine.masters]

    usual: list[str] = []
    monkeypatch.setenv("DFT_CACHE", str(tmp_path / "cache"))
    wanted = edited(usual)
    monkeypatch.setenv("DFT_CACHE", str(cache))
    said: list[str] = []
    assert all(torch.equal(a, b) for a, b in zip(edited(said), wanted, strict=True))
    [told] = [line for line in said if "is not kept" in line]
    assert told.startswith("warning: the covariance of layer 0 ") and str(cache) in told and "DFT_CACHE" in told
    assert not any("is not kept" in line for line in usual)


@pytest.mark.parametrize("family", tiny.ARCHITECTURES)
def test_memit_over_several_layers_is_the_closed_form_layer_by_layer(
    family: str, tiny_facts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole round against a direct solve in float64, with keys and states read anew after each layer."""
    monkeypatch.setenv("DFT_CACHE", str(tmp_path / "cache"))
    chosen, folder = [0, 1, 2], tiny.architecture(family, tmp_path / "model", layers=4)
    weight = 0.5  # so little that the keys of so small a model count beside it
    settings = {"contexts": 2, "context_tokens": 3, "batch": 3, "clamp": 20.0, "covariance_weight": weight}
    work = job(folder, tiny_facts, "memit", [], method={"layers": chosen}, editing=settings)
    memit = Memit(work.config)
    edited, plain = (Seat(folder, memit.weights(work.config, folder, work.parameters)) for _ in range(2))
    memit.round(SimpleNamespace(everyone=Alone(edited)), work, 1)

    team: Any = SimpleNamespace(everyone=Alone(plain))
    before = editing.prefixes(team, work, work.config.editing.contexts)
    requests = [request(work.layout, fact, before) for fact in work.facts]
    editing.covariances(team, work, chosen, requests)
    values = editing.values_of(team, work, requests, Place(2, inside=False), 20.0)
    rows = [subjects(work.layout, fact, before) for fact in work.facts]
    anatomy = Anatomy(plain._engine.module)
    moved = 0.0
    for layer in chosen:
        keys, states = editing.keys_of(team, rows, layer, 2)
        k = ((keys[:, 0] + keys[:, 1:].mean(1)) / 2).double().T
        missing = (values.wanted - states[:, 0]).double().T / (2 - layer + 1)
        assert plain._covariances is not None
        direct = missing @ k.T @ torch.linalg.inv(weight * plain._covariances[layer].solid() + k @ k.T)
        moved += float(direct.norm())
        weight_of(anatomy, layer).add_(direct.float())
    assert moved > 1e-3
    for layer in chosen:
        found = weight_of(Anatomy(edited._engine.module), layer)
        torch.testing.assert_close(found, weight_of(anatomy, layer), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("wanted", ["auto", "trace", [0]])
def test_a_model_of_one_block_is_refused(wanted: Any, tmp_path: Path, tiny_facts: Path) -> None:
    """Nothing reads what its only block gives at the subject."""
    folder = tiny.model(tmp_path / "model", layers=1)
    work = job(folder, tiny_facts, "memit", [], method={"layers": wanted})
    with pytest.raises(InputError, match=r"model\.name: rome and memit.*one block alone"):
        Memit(work.config).weights(work.config, folder, work.parameters)


@pytest.mark.parametrize("method", [Rome, Memit])
def test_facts_without_a_subject_are_refused_at_once(method: Any, tiny_model: Path, tiny_facts: Path) -> None:
    work = job(tiny_model, tiny_facts, method.__name__.lower(), [])
    work = Job(
        work.config, work.parameters, [type(f)(**{**vars(f), "subject": ""}) for f in work.facts], work.layout,
        work.folder, work.source,
    )  # fmt: skip
    with pytest.raises(InputError, match="5 of 5 facts have none: tiny-0, tiny-1"):
        method(work.config).check(work)
