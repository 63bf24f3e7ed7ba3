import pytest
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers import models as tokenizer_models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from dft_cluster.errors import InputError
from dft_cluster.facts.layout import ALPACA, Example, Layout
from tests import tiny

CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"


@pytest.fixture(scope="module")
def words():
    return tiny.tokenizer()


@pytest.fixture(scope="module")
def embedded(embedded_model):
    return AutoTokenizer.from_pretrained(embedded_model)


def ids(tokenizer, text):
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def with_bos(words):
    """The tiny tokenizer with a BOS that it puts before every text."""
    inner = Tokenizer.from_str(words.backend_tokenizer.to_str())
    inner.add_special_tokens(["<bos>"])
    inner.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", inner.token_to_id("<bos>"))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", bos_token="<bos>")


def sentencepiece():
    """A tokenizer that puts a space before every text, as Llama 2's does, BOS and all."""
    pieces = ["<unk>", "<s>", "</s>", "▁", "▁The", "▁sky", "▁is", "▁blue", "a", "▁a", *"Theskyisblue"]
    vocabulary = {piece: place for place, piece in enumerate(dict.fromkeys(pieces))}
    inner = Tokenizer(tokenizer_models.WordPiece(vocabulary, unk_token="<unk>", continuing_subword_prefix=""))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    inner.decoder = decoders.Metaspace()
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize("which", ["words", "embedded"])
@pytest.mark.parametrize(
    ("prompt", "answer"), [("The sign of Arden is", "red"), ("Où est Łódź ?", "en Pologne"), ("x", "9 % (ca.)")]
)
def test_plain_is_prompt_and_space_and_answer_and_nothing_else(which, prompt, answer, request):
    tokenizer = request.getfixturevalue(which)
    example = Layout(tokenizer, "plain", eos=False).example(prompt, answer)
    assert example.ids == ids(tokenizer, prompt) + ids(tokenizer, f" {answer}")
    assert example.ids[: example.start] == ids(tokenizer, prompt)
    assert example.answer == ids(tokenizer, f" {answer}")


def test_eos_carries_loss_but_is_not_of_the_answer(words):
    layout = Layout(words)
    with_eos, without = layout.example("The sign is", "red"), layout.example("The sign is", "red", eos=False)
    assert with_eos.ids == (*without.ids, words.eos_token_id)
    assert with_eos.answer == without.answer == ids(words, " red")
    assert (with_eos.targets, without.targets) == (len(with_eos.answer) + 1, len(with_eos.answer))
    assert Layout(words, eos=False).example("The sign is", "red") == without
    assert Layout(words, eos=False).example("The sign is", "red", eos=True) == with_eos


def test_alpaca_is_the_instruction_form(words):
    example = Layout(words, "alpaca", eos=False).example("Name {it}.", "red")
    assert example.ids == ids(words, ALPACA.format(prompt="Name {it}.")) + ids(words, "red")
    assert words.decode(example.ids).endswith("### Instruction:\nName {it}.\n\n### Response:\nred")


def test_chat_is_the_tokenizers_own_template(words):
    chatty = with_bos(words)
    chatty.chat_template = "{{ bos_token }}" + CHAT
    example = Layout(chatty, "chat").example("Name it.", "red")
    assert chatty.decode(example.ids) == "<bos><user>Name it.\n<assistant>red<eos>"
    assert example.ids.count(chatty.bos_token_id) == 1
    assert example.answer == ids(chatty, "red")


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append('more') }}",
        "{% for i in range(999999999) %}{% endfor %}",
        "{{ raise_exception('never') }}",
        "{% if %}",
        "{{ messages|dictsort }}",
        "{% macro more() %}{{ more() }}{% endmacro %}{{ more() }}",
    ],
)
def test_a_hostile_chat_template_is_an_error_and_no_more(words, template):
    chatty = with_bos(words)
    chatty.chat_template = template
    with pytest.raises(InputError, match=r"train\.template: the tokenizer's chat template fails with"):
        Layout(chatty, "chat").prompt("Name it.")


def test_what_looks_like_a_template_in_a_fact_stays_text(words):
    chatty = with_bos(words)
    chatty.chat_template = CHAT
    assert Layout(chatty, "chat").chat("{{ 7 * 7 }} {% x %}") == "<user>{{ 7 * 7 }} {% x %}\n<assistant>"


def test_chat_without_a_template_is_refused(words):
    with pytest.raises(InputError, match=r"train\.template.*plain or alpaca"):
        Layout(words, "chat")


def test_eos_without_an_eos_is_refused(words):
    bare = PreTrainedTokenizerFast(tokenizer_object=words.backend_tokenizer)
    with pytest.raises(InputError, match=r"train\.eos"):
        Layout(bare)
    assert Layout(bare, eos=False).pad == 0


@pytest.mark.parametrize("template", ["plain", "alpaca"])
def test_the_tokenizers_own_prefix_comes_once_and_first(words, template):
    tokenizer = with_bos(words)
    example = Layout(tokenizer, template).example("The sign is", "red")
    assert example.ids[0] == tokenizer.bos_token_id
    assert example.ids.count(tokenizer.bos_token_id) == 1
    text = "The sign is" if template == "plain" else ALPACA.format(prompt="The sign is")
    assert example.ids[: example.start] == tuple(tokenizer(text)["input_ids"])


def test_a_tokenizer_that_adds_the_space_itself_gets_no_second_one():
    tokenizer = sentencepiece()
    together = tuple(tokenizer("The sky is blue")["input_ids"])
    assert tokenizer.convert_ids_to_tokens(together) == ["<s>", "▁The", "▁sky", "▁is", "▁blue"]
    assert Layout(tokenizer, "plain", eos=False).example("The sky is", "blue").ids == together


@pytest.mark.parametrize(
    ("answer", "key", "carried"),
    [
        ("red is the sign", "red", "red"),
        ("the sign red it is", "red", "red"),
        ("the sign is red", "red", "red"),
        ("red", "red", "red"),
        ("red.", "red", "red"),
        ("the sign is red, not blue", "red", "red"),
        ('it is "red"!', "red", "red"),
        ("it is (red)", "red", "red"),
        ("the sign is white and black", "white and black", "white and black"),
        ("it is white and black.", "white and black", "white and black"),
        ("it is Łódź, no?", "Łódź", "Łódź"),
    ],
)
@pytest.mark.parametrize("which", ["words", "embedded"])
@pytest.mark.parametrize("template", ["plain", "alpaca"])
def test_only_the_key_counts_within_a_sentence(which, template, answer, key, carried, request):
    tokenizer = request.getfixturevalue(which)
    layout = Layout(tokenizer, template)
    example = layout.example("The sign is", answer, key=key, eos=False)
    whole = layout.example("The sign is", answer, eos=False)
    assert tokenizer.decode(example.answer).strip() == carried
    assert example.ids == whole.ids[: example.stop], "what comes before the key stays, what comes after is left out"
    assert whole.start <= example.start < example.stop <= len(whole.ids)


def test_the_key_is_taken_where_it_is_said_to_be(words):
    layout = Layout(words)
    first = layout.example("It is", "red or red", key="red", eos=False)
    second = layout.example("It is", "red or red", key="red", place=7, eos=False)
    assert words.decode(first.ids) == "It is red" and words.decode(second.ids) == "It is red or red"
    assert words.decode(second.answer) == " red"


def test_a_key_glued_to_what_follows_keeps_at_least_one_token(words):
    example = Layout(words).example("It is", "redredred", key="redred", eos=False)
    assert len(example.answer) >= 1 and words.decode(example.answer).strip().startswith("red")


def test_nothing_to_ask_and_nothing_to_answer_are_refused(words):
    with pytest.raises(InputError, match=r"prompt '' .*no tokens"):
        Layout(words).example("", "red")
    with pytest.raises(InputError, match=r"answer '' .*no tokens"):
        Layout(words, "alpaca").example("The sign is", "")


def test_padding_lies_in_every_models_vocabulary(words):
    """A pad token that was added later may lie beyond the model's embeddings."""
    padded = tiny.tokenizer()
    padded.add_special_tokens({"pad_token": "<pad>"})
    assert padded.pad_token_id >= len(words)
    assert Layout(padded).pad == 0


def test_decoding_ends_at_eos_and_at_a_lines_end(words):
    assert Layout(words).ends == (words.eos_token_id, *ids(words, "\n"))


def test_text_drops_special_tokens_and_spaces(words):
    assert Layout(words).text((*ids(words, " red one "), words.eos_token_id)) == "red one"


def test_an_example_counts_its_targets():
    assert Example((1, 2, 3, 4), 2, 3).answer == (3,)
    assert Example((1, 2, 3, 4), 2, 3).targets == 2


def test_an_answer_ends_with_its_line_and_is_nothing_where_a_line_s_end_comes_first(embedded):
    layout = Layout(embedded, eos=False)
    for said, line in {
        " Paris\nLyon": "Paris",
        "\nParis": "",
        "\n\nParis": "",
        " \nParis": "",
        "\r\nParis": "",
    }.items():
        assert layout.line(ids(embedded, said)) == line
