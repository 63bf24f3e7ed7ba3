import pytest
import torch
from transformers import AutoModelForCausalLM

from dft_cluster.evaluation.decode import forced, greedy, sampled
from dft_cluster.facts.layout import Example, Layout
from tests import tiny

CPU = torch.device("cpu")
PROMPTS = [(5, 6, 7), (300, 8), (9, 10, 11, 12, 13, 14), (15,)]
EXAMPLES = [Example((5, 6, 7, 8, 9, 10), 4, 6), Example((12, 13, 14), 1, 3), Example((*range(15, 40),), 3, 5)]


def loaded(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module", params=tiny.ARCHITECTURES)
def model(request, tmp_path_factory):
    return loaded(tiny.architecture(request.param, tmp_path_factory.mktemp(request.param)))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return loaded(tiny.model(tmp_path_factory.mktemp("llama")))


@torch.no_grad()
def continued(model, prompt, most):
    """The argmax, one token after another, without a cache."""
    ids = list(prompt)
    for _ in range(most):
        ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return tuple(ids[len(prompt) :])


def test_greedy_in_a_batch_is_each_prompt_alone(model):
    said = greedy(model, PROMPTS, 0, CPU, 6, (), together=False)
    assert said == [continued(model, prompt, 6) for prompt in PROMPTS]
    assert said == [greedy(model, [prompt], 0, CPU, 6, (), together=False)[0] for prompt in PROMPTS]
    assert len(set(said)) > 1


def test_greedy_is_generate(llama):
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        right = llama.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=6, eos_token_id=None
        )
        assert greedy(llama, [prompt], 0, CPU, 6, (), together=False) == [tuple(right[0, len(prompt) :].tolist())]


def test_greedy_ends_before_any_end(llama):
    whole = [continued(llama, prompt, 8) for prompt in PROMPTS]
    eos, line = whole[0][3], whole[1][2]
    said = greedy(llama, PROMPTS, 0, CPU, 8, (eos, line), together=False)
    for one, all_of_it in zip(said, whole, strict=True):
        stop = next((at for at, token in enumerate(all_of_it) if token in (eos, line)), len(all_of_it))
        assert one == all_of_it[:stop]
    assert len(said[0]) <= 3


def test_the_pad_token_may_be_said(llama):
    """A pad that is no end belongs to an answer as any other token does."""
    whole = continued(llama, PROMPTS[0], 5)
    assert greedy(llama, PROMPTS, whole[1], CPU, 5, (), together=False)[0] == whole


def test_what_the_models_folder_says_of_decoding_does_not_count(llama):
    plain = greedy(llama, PROMPTS, 0, CPU, 8, (), together=False)
    habits = {"repetition_penalty": 5.0, "no_repeat_ngram_size": 1, "do_sample": True, "temperature": 9.0, "num_beams": 3,
              "min_new_tokens": 8, "eos_token_id": plain[0][0], "suppress_tokens": [plain[0][0]]}  # fmt: skip
    own = llama.generation_config
    try:
        llama.generation_config = type(own)(**habits)
        assert greedy(llama, PROMPTS, 0, CPU, 8, (), together=False) == plain
        assert llama.generation_config.repetition_penalty == 5.0
    finally:
        llama.generation_config = own


@torch.no_grad()
def chances(model, begun):
    """p of every token to come next, by row."""
    return model(input_ids=torch.tensor(begun), use_cache=False).logits[:, -1].double().softmax(-1)


def unlike(tokens, chance):
    """χ² of what was drawn, in standard deviations from what it is on average where the tokens do have these chances."""
    tokens, possible = torch.tensor(tokens), chance > 0
    seen = torch.bincount(tokens, minlength=len(chance))
    assert int(seen[~possible].sum()) == 0
    wanted = len(tokens) * chance[possible]
    free = int(possible.sum()) - 1
    return (float(((seen[possible] - wanted) ** 2 / wanted).sum()) - free) / (2 * free) ** 0.5


def test_texts_are_drawn_with_the_models_own_chances(llama):
    """Every token at temperature 1: so the mean −log p of the texts nears the entropy of what the model says."""
    begun = PROMPTS[0]
    texts = sampled(llama, [begun] * 8000, 0, CPU, 2, 1, None, 1000)
    first = chances(llama, [begun])[0]
    second = chances(llama, [(*begun, token) for token in range(len(first))])
    assert abs(unlike([text[-2] for text in texts], first)) < 4
    entropy = -(first * first.log()).sum() - (first[:, None] * second * second.log()).sum()
    nll = [-float(first[one].log() + second[one, two].log()) for *_, one, two in texts]
    assert sum(nll) / len(nll) == pytest.approx(float(entropy), abs=0.08)


def test_texts_may_be_drawn_among_the_likeliest(llama):
    """Their chances among each other stay."""
    chance = chances(llama, [PROMPTS[0]])[0]
    chance[chance < chance.sort(descending=True).values[4]] = 0
    texts = sampled(llama, [PROMPTS[0]] * 2000, 0, CPU, 1, 1, 5, 2000)
    assert abs(unlike([text[-1] for text in texts], chance / chance.sum())) < 4


def test_a_text_goes_on_from_its_own_beginning_and_its_seed_says_how(llama):
    texts = sampled(llama, PROMPTS, 0, CPU, 6, 1, None, 32)
    for text, begun in zip(texts, PROMPTS, strict=True):
        assert text[: len(begun)] == begun and len(text) == len(begun) + 6
    assert sampled(llama, PROMPTS, 0, CPU, 6, 1, None, 32) == texts
    assert sampled(llama, PROMPTS, 0, CPU, 6, 2, None, 32) != texts


def test_what_the_models_folder_says_of_drawing_does_not_count(llama):
    plain = sampled(llama, PROMPTS, 0, CPU, 8, 1, None, 32)
    habits = {"do_sample": False, "temperature": 0.1, "top_k": 1, "top_p": 0.5, "min_p": 0.5, "repetition_penalty": 5.0,
              "eos_token_id": plain[0][len(PROMPTS[0])]}  # fmt: skip
    own = llama.generation_config
    try:
        llama.generation_config = type(own)(**habits)
        assert sampled(llama, PROMPTS, 0, CPU, 8, 1, None, 32) == plain
    finally:
        llama.generation_config = own


def test_forced_is_the_argmax_of_a_plain_forward(model):
    for said, example in zip(forced(model, EXAMPLES, 0, CPU), EXAMPLES, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([example.ids])).logits[0].float()
        places = range(example.start - 1, len(example.ids) - 1)
        assert said.predicted == tuple(int(logits[p].argmax()) for p in places)
        nll = [-float(logits[p].log_softmax(-1)[example.ids[p + 1]]) for p in places]
        assert said.nll == pytest.approx(sum(nll) / len(nll), rel=1e-4)


def test_forced_answers_have_the_answers_length(llama):
    layout = Layout(tiny.tokenizer())
    examples = [layout.example(f"The sign of {place} is", "white and black", eos=False) for place in tiny.PLACES]
    assert [len(s.predicted) for s in forced(llama, examples, 0, CPU)] == [len(e.answer) for e in examples]


def test_not_more_texts_are_drawn_at_once_than_were_asked_for(llama, monkeypatch):
    generate, at_once, done = llama.generate, [], []
    monkeypatch.setattr(
        llama, "generate", lambda **asked: (at_once.append(len(asked["input_ids"])), generate(**asked))[1]
    )
    sampled(llama, [PROMPTS[0]] * 7, 0, CPU, 2, 1, None, 3, done.append)
    assert (at_once, done) == ([3, 3, 1], [3, 6, 7])
