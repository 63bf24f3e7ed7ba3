"""Values, keys, prefixes and what covariances add up, on tiny random models of every architecture."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from dft_cluster.config import EditingSettings
from dft_cluster.editing import contexts, states, values
from dft_cluster.editing.anatomy import Anatomy
from dft_cluster.editing.covariance import Passage, Sums
from dft_cluster.editing.requests import Request, request
from dft_cluster.editing.subjects import span
from dft_cluster.editing.trace import DRAWS, NOISE, Asked, indirect_effects, window
from dft_cluster.editing.values import Place, seek
from dft_cluster.errors import InputError
from dft_cluster.facts.fact import Fact
from dft_cluster.facts.layout import Layout
from tests import tiny

PREFIXES = ["The one is", "Because, of a"]
SETTINGS = EditingSettings(steps=5)


def facts(count: int) -> list[Fact]:
    found = []
    for record in tiny.records(count):
        texts = {name: str(record[name]) for name in ("id", "prompt", "subject")}
        found.append(Fact(old=str(record["target_old"]), new=f"{record['target_new']} {record['target_old']}", **texts))
    return found


@pytest.fixture(scope="module", params=tiny.ARCHITECTURES)
def anatomy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Anatomy]:
    folder = tiny.architecture(request.param, tmp_path_factory.mktemp(request.param))
    yield Anatomy(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval())


@pytest.fixture(scope="module")
def layout() -> Layout:
    return Layout(tiny.tokenizer())


def requests(layout: Layout, count: int = 3) -> list[Request]:
    return [request(layout, fact, PREFIXES[:1]) for fact in facts(count)]


PLACES = [Place(0, inside=True), Place(0, inside=False), Place(1, inside=True)]


@pytest.mark.parametrize("place", PLACES)
def test_the_cache_changes_nothing(anatomy: Anatomy, layout: Layout, place: Place) -> None:
    with_cache = seek(anatomy, requests(layout), place, SETTINGS, 4.0)
    without = seek(anatomy, requests(layout), place, SETTINGS, 4.0, cached=False)
    torch.testing.assert_close(with_cache.wanted, without.wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(with_cache.losses, without.losses, rtol=1e-4, atol=1e-4)
    # In these models of two blocks nothing reads what the last one gives at the subject.
    assert torch.equal(with_cache.wanted, with_cache.given) == (place.layer == 1)


@pytest.mark.parametrize("place", PLACES)
def test_together_is_one_at_a_time(anatomy: Anatomy, layout: Layout, place: Place) -> None:
    asked = [request(layout, fact, PREFIXES) for fact in facts(4)]
    together = seek(anatomy, asked, place, SETTINGS, 4.0)
    for number, one in enumerate(asked):
        alone = seek(anatomy, [one], place, SETTINGS, 4.0)
        torch.testing.assert_close(together.wanted[number], alone.wanted[0], rtol=1e-4, atol=1e-4)
        assert together.losses[number] == pytest.approx(alone.losses[0], rel=1e-4, abs=1e-4)


def test_a_state_that_took_in_the_padding_is_no_cache(layout: Layout, tmp_path: Path) -> None:
    """Linear attention keeps no keys and values of which rows could be chosen: every token goes through the model."""
    folder = tiny.architecture("qwen3_5_text", tmp_path / "model")
    linear = Anatomy(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval())
    asked = [request(layout, fact, PREFIXES) for fact in facts(3)]
    for place in PLACES[:2]:
        found = seek(linear, asked, place, SETTINGS, 4.0)
        without = seek(linear, asked, place, SETTINGS, 4.0, cached=False)
        assert torch.equal(found.wanted, without.wanted) and found.losses == without.losses
        assert not torch.equal(found.wanted, found.given)
        for number, one in enumerate(asked):
            alone = seek(linear, [one], place, SETTINGS, 4.0)
            torch.testing.assert_close(found.wanted[number], alone.wanted[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("window", [4, 16, 64])
def test_a_window_that_padding_would_fill_is_no_cache(layout: Layout, tmp_path: Path, window: int) -> None:
    """Rows of 17 to 24 tokens, of which those before the subject's end lie to the left of padding; 64 holds all of both."""
    folder = tiny.architecture("mistral", tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, sliding_window=window).eval()
    asked = [request(layout, fact, PREFIXES) for fact in facts(3)]
    assert (values._collate(Anatomy(model), asked, cached=True).cache is not None) == (window == 64)
    for place in PLACES[:2]:
        found = seek(Anatomy(model), asked, place, SETTINGS, 4.0)
        without = seek(Anatomy(model), asked, place, SETTINGS, 4.0, cached=False)
        torch.testing.assert_close(found.wanted, without.wanted, rtol=1e-4, atol=1e-4)
        assert not torch.equal(found.wanted, found.given)


@pytest.mark.parametrize("inside", [True, False])
def test_the_loss_is_the_one_that_is_defined(anatomy: Anatomy, layout: Layout, inside: bool) -> None:
    """Put into the plain model by a hook, the value gives the loss that was told."""
    asked = request(layout, facts(1)[0], PREFIXES[:1])
    found = seek(anatomy, [asked], Place(0, inside=inside), SETTINGS, 4.0)
    moved = anatomy.downs[0] if inside else anatomy.blocks[0]
    delta = (found.wanted - found.given)[0]

    def logits(ids: tuple[int, ...], at: int | None) -> torch.Tensor:
        def add(_module: Any, _given: Any, output: Any) -> Any:
            states = (output[0] if isinstance(output, tuple) else output).clone()
            if at is not None:
                states[..., at, :] += delta  # of one text: with a dimension for texts, or without
            return (states, *output[1:]) if isinstance(output, tuple) else states

        handle = moved.register_forward_hook(add)
        try:
            with torch.no_grad():
                return anatomy.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        finally:
            handle.remove()

    nll = []
    for row in asked.rows:
        said = logits(row.ids, row.at)[row.start - 1 : -1]
        nll.append(-said.gather(1, torch.tensor(row.answer)[:, None]).mean())
    now, before = (logits(asked.essence.ids, at)[-1] for at in (asked.essence.at, None))
    loss = sum(nll) / 2 + SETTINGS.kl * (now.exp() * (now - before)).sum()
    loss += SETTINGS.weight_decay * delta.norm() / found.given.norm() ** 2
    assert found.losses[0] == pytest.approx(float(loss), rel=1e-4)


def test_rows_go_through_the_model_with_those_of_like_length(
    anatomy: Anatomy, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, forward = [], anatomy.forward

    def watched(ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Any = None, **how: Any) -> Any:
        seen.append(mask[:, -ids.shape[1] :].sum(1))
        return forward(ids, mask, positions, cache, **how)

    monkeypatch.setattr(anatomy, "forward", watched)
    seek(anatomy, requests(layout, 5), Place(0, inside=False), EditingSettings(steps=1), 4.0)
    _, first, *parts = seen  # what lies before the subject, and what the untouched model gives
    assert sorted(first.tolist()) == sorted(length for part in parts for length in part.tolist())
    assert len(parts) > 1
    assert all(int(part.max()) < 2 * int(part.min()) for part in parts)


def test_a_fact_is_done_at_its_first_loss_that_is_enough(
    anatomy: Anatomy, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sought(steps: int) -> values.Values:
        return seek(anatomy, requests(layout, 1), Place(0, inside=False), EditingSettings(steps=steps), 10.0)

    *early, fourth = (sought(steps) for steps in (1, 2, 3, 4))
    enough = (early[-1].losses[0] + fourth.losses[0]) / 2
    assert min(one.losses[0] for one in early) > enough > fourth.losses[0]
    monkeypatch.setattr(values, "ENOUGH", enough)
    stopped = sought(25)
    assert stopped.losses == fourth.losses and torch.equal(stopped.wanted, fourth.wanted)


def test_each_value_takes_the_steps_of_adam() -> None:
    """torch's own for each fact, also for those that go on when others are done."""
    torch.manual_seed(0)
    own = values._Adam(torch.Size((3, 5)), torch.device("cpu"), 0.5)
    found, rows = torch.zeros(3, 5), torch.arange(3)
    theirs = [torch.zeros(5, requires_grad=True) for _ in range(3)]
    steps = [torch.optim.Adam([one], lr=0.5) for one in theirs]
    for number in range(6):
        rows = rows[rows != 1] if number == 3 else rows
        slope = torch.randn(len(rows), 5)
        found[rows] -= own.step(slope, rows)
        for row, gradient in zip(rows.tolist(), slope, strict=True):
            theirs[row].grad = gradient
            steps[row].step()
    torch.testing.assert_close(found, torch.stack(theirs).detach())


def test_a_value_goes_no_further_than_the_clamp(anatomy: Anatomy, layout: Layout) -> None:
    found = seek(anatomy, requests(layout), Place(0, inside=False), SETTINGS, 0.1)
    moved = (found.wanted - found.given).norm(dim=1) / found.given.norm(dim=1)
    assert bool((moved <= 0.1 + 1e-5).all()) and float(moved.max()) > 0.09


def test_more_steps_make_the_answer_likelier(anatomy: Anatomy, layout: Layout) -> None:
    first, last = (
        seek(anatomy, requests(layout), Place(0, inside=False), EditingSettings(steps=steps), 10.0).losses
        for steps in (1, 25)
    )
    assert sum(last) < sum(first) - 0.5


def test_the_model_is_left_as_it_was(anatomy: Anatomy, layout: Layout) -> None:
    before = {name: weight.clone() for name, weight in anatomy.model.named_parameters()}
    seek(anatomy, requests(layout), Place(1, inside=True), SETTINGS, 4.0)
    assert all(torch.equal(weight, before[name]) for name, weight in anatomy.model.named_parameters())
    assert all(weight.requires_grad for weight in anatomy.model.parameters())
    assert not any("forward" in vars(block) or block._forward_hooks for block in anatomy.blocks)
    assert anatomy.head is not None and not anatomy.head._forward_pre_hooks


def test_a_model_without_a_module_for_its_head_is_refused(
    anatomy: Anatomy, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(anatomy, "head", None)
    with pytest.raises(InputError, match="get_output_embeddings"):
        seek(anatomy, requests(layout), Place(0, inside=False), SETTINGS, 4.0)


def passing(
    anatomy: Anatomy, ids: tuple[int, ...], down: torch.nn.Module, block: torch.nn.Module
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the one takes and the other gives at each token of a single text in the plain model."""
    seen: dict[str, Any] = {}
    hooks = [
        down.register_forward_hook(lambda _, taken, _out: seen.update(key=taken[0])),
        block.register_forward_hook(
            lambda _, _taken, out: seen.update(state=out[0] if isinstance(out, tuple) else out)
        ),
    ]
    with torch.no_grad():
        anatomy.model(input_ids=torch.tensor([ids]))
    for hook in hooks:
        hook.remove()
    return seen["key"].view(len(ids), -1), seen["state"].view(len(ids), -1)


def test_keys_and_states_are_what_passes(anatomy: Anatomy, layout: Layout) -> None:
    rows = [row for one in requests(layout, 5) for row in one.rows]
    keys, given = states.read(anatomy, rows, 0, 1)
    for number, row in enumerate(rows):
        key, state = passing(anatomy, row.ids, anatomy.downs[0], anatomy.blocks[1])
        torch.testing.assert_close(keys[number], key[row.at], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(given[number], state[row.at], rtol=1e-4, atol=1e-5)


def test_the_covariance_is_the_mean_over_all_real_tokens(anatomy: Anatomy, layout: Layout) -> None:
    texts = [layout.prompt(fact.prompt) for fact in facts(6)]
    passages = [Passage(ids, 3 if number == 5 else None) for number, ids in enumerate(texts)]
    sums = Sums(anatomy, [0, 1])
    sums.add(passages[:4])
    sums.add(passages[4:])
    for layer in (0, 1):
        every = []
        for ids in texts:
            key, _ = passing(anatomy, ids, anatomy.downs[layer], anatomy.blocks[layer])
            every.append(key.double())
        every[5] = torch.cat([every[5][:3], every[5][4:]])
        keys = torch.cat(every)
        assert sums.tokens == len(keys)
        torch.testing.assert_close(
            sums.by_layer[layer].double() / sums.tokens, keys.T @ keys / len(keys), rtol=1e-4, atol=1e-6
        )


def test_prefixes_are_the_seeds_and_are_likely(anatomy: Anatomy, layout: Layout) -> None:
    begin = contexts.openings(layout)
    drawn = contexts.sample(anatomy, begin, 7, 4, seed=3)
    assert drawn == contexts.sample(anatomy, begin, 7, 4, seed=3)
    assert drawn != contexts.sample(anatomy, begin, 7, 4, seed=4)
    for number, ids in enumerate(drawn):
        start = begin[number % len(begin)]
        assert tuple(ids[: len(start)]) == start and len(ids) == len(start) + 4
        with torch.no_grad():
            best = anatomy.model(input_ids=torch.tensor([ids])).logits[0].topk(contexts.TOP).indices
        assert all(ids[place + 1] in best[place] for place in range(len(start) - 1, len(ids) - 1))


def test_tracing_is_its_definition(anatomy: Anatomy, layout: Layout) -> None:
    traced(anatomy, layout, [range(layer, layer + 1) for layer in range(2)])


def test_tracing_sets_back_a_window_of_a_deep_model(layout: Layout, tmp_path: Path) -> None:
    folder = tiny.architecture("llama", tmp_path / "deep", layers=8)
    deep = Anatomy(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval())
    assert window(8) == 2
    traced(deep, layout, [range(first, first + 2) for first in (0, 0, 1, 2, 3, 4, 5, 6)])


def test_the_noise_is_of_the_size_of_what_the_model_makes_of_its_embeddings(layout: Layout, tmp_path: Path) -> None:
    folder = tiny.architecture("gemma", tmp_path / "model")
    scaled = Anatomy(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval())
    ids = torch.tensor([5])
    torch.testing.assert_close(scaled.embedding(ids), 32**0.5 * scaled.embedding.weight[ids])  # type: ignore[index]
    traced(scaled, layout, [range(layer, layer + 1) for layer in range(2)])


def traced(anatomy: Anatomy, layout: Layout, together: list[range]) -> None:
    """Against whole forward passes, prompt by prompt and noise by noise, with nothing kept from one to the next.
    `together` holds the layers that are set back for each."""
    asked = [
        Asked(layout.prompt(fact.prompt), *span(layout, fact.prompt, fact.subject), 5 + number)
        for number, fact in enumerate(facts(2))
    ]
    effects = indirect_effects(anatomy, asked)
    assert effects == indirect_effects(anatomy, asked)
    expected = [0.0] * len(anatomy.blocks)
    for number, one in enumerate(asked):
        clean: dict[int, torch.Tensor] = {}
        at = slice(one.first, one.last + 1)

        def chance(
            noise: torch.Tensor | None,
            restored: range,
            one: Asked = one,
            at: slice = at,
            clean: dict[int, torch.Tensor] = clean,
        ) -> torch.Tensor:
            def disturb(_module: Any, _given: Any, out: torch.Tensor) -> torch.Tensor:
                out = out.clone()
                out[:, at] += 0 if noise is None else noise
                return out

            def look(layer: int) -> Any:
                def hook(_module: Any, _given: Any, out: torch.Tensor) -> torch.Tensor:
                    if noise is None:
                        clean[layer] = out[..., one.last, :].clone()
                    elif layer in restored:
                        out = out.clone()
                        out[..., one.last, :] = clean[layer]
                    return out

                return hook

            hooks = [anatomy.embedding.register_forward_hook(disturb)]
            hooks += [down.register_forward_hook(look(layer)) for layer, down in enumerate(anatomy.downs)]
            with torch.no_grad():
                said = anatomy.model(input_ids=torch.tensor([one.ids])).logits[0, -1].softmax(-1)
            for hook in hooks:
                hook.remove()
            return said

        answer = int(chance(None, range(0)).argmax())
        with torch.no_grad():
            every = anatomy.embedding(torch.arange(anatomy.model.config.vocab_size))
        generator = torch.Generator().manual_seed(5 + number)
        noises = torch.randn(DRAWS, one.last + 1 - one.first, every.shape[1], generator=generator) * NOISE * every.std()
        for layer in range(len(expected)):
            gained = [chance(noise, together[layer])[answer] - chance(noise, range(0))[answer] for noise in noises]
            expected[layer] += float(sum(gained)) / DRAWS
    assert effects == pytest.approx(expected, abs=1e-5)
    assert max(map(abs, expected)) > 1e-4, "there is something to bring back"
