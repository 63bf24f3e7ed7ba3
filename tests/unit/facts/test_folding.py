import pytest
from hypothesis import given
from hypothesis import strategies as st

from dft_cluster.facts.folding import contains, fold, matches, occurrences, plain


@pytest.mark.parametrize(
    ("text", "folded"),
    [
        (" The  Hague. ", "the hague"),
        ("ﬁnal Straße", "final strasse"),
        ("St. Louis, Missouri!", "st louis missouri"),
        ("Jean-Luc", "jean luc"),
        ("C++", "c++"),
        ("cafe\u0301", "café"),
        ("?!", "?!"),
        ("", ""),
    ],
)
def test_fold(text, folded):
    assert fold(text) == folded


@given(st.text())
def test_folding_twice_folds_no_more(text):
    assert fold(fold(text)) == fold(text)
    assert plain(plain(text)) == plain(text)


@given(st.text())
def test_a_text_matches_itself_however_it_is_cased_and_spaced(text):
    assert matches(f"  {text} ", text)
    assert matches(text.casefold(), text)


def test_silence_matches_nothing():
    assert not matches("", "?!")
    assert not matches("", "Oslo")
    assert not contains("anything", "")


@pytest.mark.parametrize(
    ("said", "answer", "found"),
    [
        ("It is in Art-Deco style.", "art", True),
        ("King Arthur's", "Art", False),
        ("Paris's river", "PARIS", True),
        ("The U.S. army", "u.s.", True),
        ("New York City", "york city", True),
        ("New Yorkers", "New York", False),
        ("in 19800", "1980", False),
        ("住在東京都です", "東京", True),
        ("อยู่ที่กรุงเทพมหานคร", "กรุงเทพ", True),
        ("रामायण", "राम", False),
    ],
)
def test_contains_whole_words(said, answer, found):
    assert contains(said, answer) is found


def test_occurrences_are_places():
    assert occurrences("Art, art and Arthur; Art", "Art") == [(0, 3), (21, 24)]
    assert occurrences("Art, art and Arthur", "ART", any_case=True) == [(0, 3), (5, 8)]
    assert occurrences("a.b", ".") == []
