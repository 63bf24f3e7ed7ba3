import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st

from dft_cluster.evaluation.probes import HELD_TOKENS, batched, dealt, gathered, of_kind, probes
from dft_cluster.facts.fact import Fact, Probe
from dft_cluster.facts.layout import Layout
from dft_cluster.facts.pairs import Line, generated, given
from tests import tiny

FACTS = [
    Fact("a", "The sign of Arden is", "red", "seven", rephrases=("Arden has", "In Arden it is"),
         locality=(Probe("After one comes", "two"),), portability=(Probe("Arden's colour is", "blue"),)),
    Fact("b", "The sign of Borland is", "blue", "white and black", locality=(Probe("x", "one"), Probe("y", "two"))),
]  # fmt: skip


@pytest.fixture(scope="module")
def layout():
    return Layout(tiny.tokenizer())


def said(layout, asked, kind):
    """(fact, prompt and what is given of the answer, answer that counts) of every probe of a kind."""
    text = layout.tokenizer.decode
    chosen = [asked[place] for place in of_kind(asked, kind)]
    return [(a.fact, text(a.example.ids[: a.example.start]), text(a.example.answer)) for a in chosen]


def test_every_probe_of_every_fact_is_asked(layout):
    asked = probes(FACTS, given(FACTS), layout, likelihood=True)
    assert said(layout, asked, "reliability") == [
        (0, "The sign of Arden is", " seven"), (1, "The sign of Borland is", " white and black")]  # fmt: skip
    assert said(layout, asked, "old") == [(0, "The sign of Arden is", " red"), (1, "The sign of Borland is", " blue")]
    assert said(layout, asked, "generality") == [(0, "Arden has", " seven"), (0, "In Arden it is", " seven")]
    assert said(layout, asked, "old_rephrased") == [(0, "Arden has", " red"), (0, "In Arden it is", " red")]
    assert said(layout, asked, "locality") == [(0, "After one comes", " two"), (1, "x", " one"), (1, "y", " two")]
    assert said(layout, asked, "new_for_locality") == [
        (0, "After one comes", " seven"), (1, "x", " white and black"), (1, "y", " white and black")]  # fmt: skip
    assert said(layout, asked, "portability") == [(0, "Arden's colour is", " blue")]
    assert all(a.example.targets == len(a.example.answer) for a in asked), "no EOS in the metrics"


def test_likelihood_asks_more_only_when_wanted(layout):
    kinds = {a.kind for a in probes(FACTS, given(FACTS), layout)}
    assert kinds == {"reliability", "old", "generality", "locality", "portability", "held"}


def test_within_the_models_own_sentence_only_the_key_counts(layout):
    pairs = generated(FACTS, [Line("It is red, they say."), Line("blue, of course")])
    asked = probes(FACTS, pairs, layout)
    assert said(layout, asked, "reliability") == [
        (0, "The sign of Arden is It is", " seven"), (1, "The sign of Borland is", " white and black")]  # fmt: skip
    assert said(layout, asked, "old") == [
        (0, "The sign of Arden is It is", " red"),
        (1, "The sign of Borland is", " blue"),
    ]
    assert said(layout, asked, "generality")[0] == (0, "Arden has It is", " seven")


@pytest.mark.parametrize(
    ("sentence", "old", "new", "before_old", "before_new"),
    [
        ("reddish or red", "red", "one", " reddish or", " reddish or"),
        ("one or red", "red", "one", " one or", " one or"),
        ("one two and one", "one", "one two", " one two and", " one two and"),
    ],
)
def test_the_key_is_asked_where_it_was_swapped(layout, sentence, old, new, before_old, before_new):
    """The key's letters may stand in the sentence before it, too."""
    fact = Fact("f", "It is", old, new)
    asked = probes([fact], generated([fact], [Line(sentence)]), layout)
    assert said(layout, asked, "old") == [(0, f"It is{before_old}", f" {old}")]
    assert said(layout, asked, "reliability") == [(0, f"It is{before_new}", f" {new}")]


def test_a_fact_without_its_pair_is_our_own_mistake(layout):
    with pytest.raises(ValueError, match="zip"):
        probes(FACTS, given(FACTS)[:1], layout)


def test_the_held_text_is_predicted_whole_but_for_each_windows_first_token(layout):
    asked = probes(FACTS, given(FACTS), layout)
    held = [asked[p].example for p in of_kind(asked, "held")]
    assert len(held) > 1 and all(e.start == 1 and e.stop == len(e.ids) <= HELD_TOKENS for e in held)
    assert all(len(e.ids) == HELD_TOKENS for e in held[:-1])
    text = layout.tokenizer.decode([i for e in held for i in e.ids])
    assert all(place not in text for place in tiny.PLACES)


@drawn(st.lists(st.integers(0, 30), max_size=60), st.integers(1, 9), st.integers(1, 8))
def test_dealing_out_and_gathering_is_the_identity(lengths, size, ranks):
    batches = batched(lengths, size, lambda n: n)
    assert sorted(place for batch in batches for place in batch) == list(range(len(lengths)))
    assert all(0 < len(batch) <= size for batch in batches)
    shares = dealt([[(place, lengths[place]) for place in batch] for batch in batches], ranks)
    assert len(shares) == ranks and len({len(share) for share in shares}) == 1, "all ranks step equally often"
    answers = [[[("said", item) for item in batch] for batch in share] for share in shares]
    assert gathered(batches, answers) == [("said", item) for item in enumerate(lengths)]


@drawn(st.lists(st.integers(0, 30), max_size=60), st.integers(1, 9))
def test_a_batch_holds_items_of_like_length(lengths, size):
    batches = [[lengths[place] for place in batch] for batch in batched(lengths, size, lambda n: n)]
    assert [length for batch in batches for length in batch] == sorted(lengths)
    assert all(max(batch) <= 2 * min(batch) for batch in batches), "padding is never most of a batch"


def test_no_rank_is_dealt_more_than_its_share():
    shares = dealt(list("abcdefg"), 3)
    assert shares == [["a", "d", "g"], ["b", "e", "a"], ["c", "f", "a"]]


def test_an_answer_too_few_is_our_own_mistake():
    with pytest.raises(ValueError, match="zip"):
        gathered([[0, 1]], [[["only one"]]])
