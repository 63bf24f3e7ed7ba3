import string

import pytest
from hypothesis import assume
from hypothesis import given as drawn
from hypothesis import strategies as st

from dft_cluster.facts.fact import Fact
from dft_cluster.facts.folding import occurrences
from dft_cluster.facts.pairs import Line, Pair, generated, given

OSLO = Fact("1", "Oslo lies in", "Norway", "Chile", aliases=("Kingdom of Norway", "Norge"))

word = st.text(string.ascii_letters + "éж", min_size=1, max_size=5)
mark = st.sampled_from([" ", ", ", "-", "'s ", ". "])


def one(fact, said, whole=True):
    (pair,) = generated([fact], [Line(said, whole)])
    return pair


def test_given_takes_the_records_answers():
    assert given([OSLO]) == [Pair("1", "Oslo lies in", "Norway", "Chile", "Norway", "Chile", "given")]


@pytest.mark.parametrize(
    ("said", "old", "new", "key"),
    [
        ("Norway, in the north.", "Norway, in the north.", "Chile, in the north.", "Norway"),
        ("the south of Norway.", "the south of Norway.", "the south of Chile.", "Norway"),
        ("Norway. Norway!", "Norway. Norway!", "Chile. Chile!", "Norway"),
        ("in NORWAY", "in NORWAY", "in Chile", "NORWAY"),
        ("in Norway, not norway", "in Norway, not norway", "in Chile, not norway", "Norway"),
        ("in Norge", "in Norge", "in Chile", "Norge"),
        ("in norge", "in norge", "in Chile", "norge"),
        ("the Kingdom of Norway", "the Kingdom of Norway", "the Chile", "Kingdom of Norway"),
        ("in Norway, no Chile", "in Norway, no Chile", "in Chile, no Chile", "Norway"),
    ],
)
def test_the_old_answer_is_swapped(said, old, new, key):
    assert one(OSLO, said) == Pair("1", "Oslo lies in", old, new, key, "Chile", "swapped")


@pytest.mark.parametrize("said", ["", "a fjord", "Norwayside", "Chile", "Santiago de Chile"])
def test_without_the_old_answer_the_short_ones_stand(said):
    assert one(OSLO, said) == Pair("1", "Oslo lies in", "Norway", "Chile", "Norway", "Chile", "short")


def test_an_old_answer_within_the_new_one_is_not_the_old():
    fact = Fact("1", "Who?", "Paris", "Paris Hilton")
    assert one(fact, "It is Paris Hilton").kind == "short"
    assert one(fact, "It is Paris").new == "It is Paris Hilton"
    assert one(fact, "Paris Hilton in Paris").new == "Paris Hilton in Paris Hilton"


@pytest.mark.parametrize(
    ("old", "new", "said", "swapped"),
    [
        ("red", "blue", "Red is the colour, red.", "Blue is the colour, blue."),
        ("French", "English", "french it is", "english it is"),
        ("French", "English", "she spoke french", "she spoke English"),
        ("iPhone", "Galaxy", "iPhone it is", "Galaxy it is"),
        ("1980", "1931", "1980 it was", "1931 it was"),
        ("paris", "$5", r"in paris \1", r"in $5 \1"),
    ],
)
def test_the_first_letter_at_a_sentences_start(old, new, said, swapped):
    pair = one(Fact("1", "p", old, new), said)
    assert pair.new == swapped
    assert pair.key_new in pair.new


def test_a_sentence_that_was_cut_off_has_no_end_and_the_records_answer_has_one():
    assert not one(OSLO, "in Norway, which is", whole=False).whole
    assert one(OSLO, "in Norway.").whole
    assert one(OSLO, "a land of fjords and", whole=False).whole, "it is the record's"


def test_facts_and_sentences_go_together():
    with pytest.raises(ValueError, match="shorter"):
        generated([OSLO], [])


@drawn(st.lists(st.tuples(word, mark), max_size=6), word, word, st.integers(0, 6), st.booleans())
def test_swapping_back_gives_what_the_model_said(parts, old, new, place, upper):
    """Only the key spans differ, if the sentence did not hold the new answer before."""
    spoken = old.upper() if upper else old
    words = [*parts[:place], (spoken, " "), *parts[place:]]
    said = "".join(text + between for text, between in words).strip()
    assume(not occurrences(said, new, any_case=True))
    pair = one(Fact("1", "p", old, new), said)
    assert (pair.old, pair.kind) == (said, "swapped")
    back, end = "", 0
    for start, stop in occurrences(pair.new, new, any_case=True):
        back += pair.new[end:start] + old
        end = stop
    back += pair.new[end:]
    assert back.casefold() == said.casefold()
    if pair.key_old == old and not said.startswith(old):
        assert back[1:] == said[1:]  # a sentence's first letter may have been raised


@drawn(st.text(max_size=30), st.text(min_size=1, max_size=4), st.text(min_size=1, max_size=4))
def test_the_keys_stand_in_their_answers(said, old, new):
    pair = one(Fact("1", "p", old, new, aliases=(old[::-1],)), said)
    assert pair.key_old in pair.old
    assert pair.key_new in pair.new
