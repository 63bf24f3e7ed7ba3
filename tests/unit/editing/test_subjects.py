"""The subject's last token, under every template and for tokenizers of all kinds."""

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from dft_cluster.editing.subjects import end_in, last_token, refuse_without_subject, span
from dft_cluster.errors import InputError
from dft_cluster.facts.fact import Fact
from dft_cluster.facts.layout import Layout
from tests import tiny

CHAT = "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}<|end|>{% endfor %}<|assistant|>"
SENTENCES = [
    ("The sign of Arden is", "Arden"),
    ("Arden's sign is", "Arden"),
    ("What is the sign of Arden?", "Arden"),
    ("Which Arden is not the other Arden, namely", "Arden"),
    ("Where was Zoë Čapková born?", "Zoë Čapková"),
    ("东京 是 首都 of", "东京"),
    ("A 😀 smile means", "😀"),
    ("  Arden   stands first", "Arden"),
    ("To whom belongs Arden", "Arden"),
]


def byte_level() -> Any:
    words = tiny.tokenizer()
    words.chat_template = CHAT
    return words


def with_start() -> Any:
    """Puts a BOS before every text."""
    words = byte_level()
    words.add_special_tokens({"bos_token": "<bos>"})
    words.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", words.bos_token_id)]
    )
    return words


def metaspace(lower: bool = False) -> Any:
    """As SentencePiece does it: a space before every text, marks for spaces, one token for each character."""
    letters = sorted(
        {c for text, _ in SENTENCES for c in text.replace(" ", "▁") + text.lower()}
        | set("▁abcdefghijklmnopqrstuvwxyz#:,.'?\n")
    )
    alphabet = letters + [c for c in map(chr, range(33, 127)) if c not in letters]
    vocabulary = [("<unk>", 0.0), ("<eos>", 0.0), *((c, -5.0) for c in alphabet), ("▁Arden", -1.0), ("▁arden", -1.0)]
    inner = Tokenizer(models.Unigram(vocabulary, unk_id=0))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    inner.decoder = decoders.Metaspace(prepend_scheme="always")
    if lower:
        inner.normalizer = normalizers.Lowercase()
    words = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", unk_token="<unk>")
    words.chat_template = CHAT
    return words


TOKENIZERS = {
    "bytes": byte_level,
    "start": with_start,
    "metaspace": metaspace,
    "lower": lambda: metaspace(lower=True),
}


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("template", ["plain", "alpaca", "chat"])
@pytest.mark.parametrize(("prompt", "subject"), SENTENCES)
def test_the_tokens_up_to_the_last_end_with_the_subject(kind: str, template: Any, prompt: str, subject: str) -> None:
    words = TOKENIZERS[kind]()
    layout = Layout(words, template)
    ids = layout.prompt(prompt)
    first, last = span(layout, prompt, subject)

    def bare(text: str) -> str:
        return "".join(text.split()).lower()

    def said(upto: int) -> str:
        return bare(words.decode(list(ids[:upto]), clean_up_tokenization_spaces=False))

    assert bare(subject) in said(last + 1)
    assert said(last + 1).count(bare(subject)) == prompt.count(subject), "the last occurrence is reached"
    assert said(last).count(bare(subject)) == prompt.count(subject) - 1, "and not passed"
    assert bare(subject) in bare(words.decode(list(ids[first : last + 1]), clean_up_tokenization_spaces=False))
    assert said(first).count(bare(subject)) < said(last + 1).count(bare(subject))
    inside = [words.decode([token]).strip() for token in ids[first : last + 1]]
    assert len([text for text in inside if text]) <= len(subject.encode()), "no token before it belongs to it"


def test_without_offsets_the_place_is_the_same() -> None:
    quick = byte_level()

    class Slow:
        """The same tokenizer, as one without offsets would look."""

        is_fast = False

        def __getattr__(self, name: str) -> Any:
            return getattr(quick, name)

        def __call__(self, text: str, **options: Any) -> Any:
            assert "return_offsets_mapping" not in options
            return quick(text, **options)

    for template in ("plain", "alpaca", "chat"):
        for prompt, subject in SENTENCES:
            fast, slow = Layout(quick, template), Layout(Slow(), template)
            assert span(fast, prompt, subject) == span(slow, prompt, subject), (template, prompt)


def test_a_token_that_holds_more_than_the_subjects_end_counts() -> None:
    inner = Tokenizer(models.WordLevel({"<unk>": 0, "<eos>": 1, "Is": 2, "Arden?": 3, "so": 4}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    layout = Layout(PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", unk_token="<unk>"))
    assert last_token(layout, "Is Arden? so", "Arden") == 1


def test_the_case_as_written_comes_first() -> None:
    assert end_in("the Sun and the sun and the SUN", "sun") == len("the Sun and the sun")
    assert end_in("the Sun and the SUN", "sun") == len("the Sun and the SUN")
    assert end_in("the Sun", " Sun ") == len("the Sun")
    assert end_in("the moon", "sun") is None


def test_every_fact_without_a_subject_in_its_prompt_is_named_at_once() -> None:
    facts = [
        Fact("a", "The sign of Arden is", "red", "one", subject="Arden"),
        Fact("b", "The sign of Arden is", "red", "one"),
        Fact("c", "The sign of Arden is", "red", "one", subject="Borland"),
        Fact("d", "The sign of Arden is", "red", "one", subject="  "),
    ]
    with pytest.raises(InputError) as caught:
        refuse_without_subject(facts)
    told = str(caught.value)
    assert "2 of 4 facts have none: b, d" in told
    assert "in 1 of 4 facts it is not: c" in told and "'Borland'" in told
    refuse_without_subject(facts[:1])
