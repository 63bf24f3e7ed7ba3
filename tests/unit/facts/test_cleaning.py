import pytest
from hypothesis import given
from hypothesis import strategies as st

from dft_cluster.errors import InputError
from dft_cluster.facts.cleaning import choose, clean
from dft_cluster.facts.fact import Fact

words = st.sampled_from(["Oslo", "oslo", " Oslo ", "Rome", "Lima"])
some_facts = st.lists(st.tuples(words, words, words)).map(
    lambda rows: [Fact(str(n), *row) for n, row in enumerate(rows)]
)


def test_each_reason():
    nothing = Fact("1", "Capital of Norway?", "Oslo", " oslo ")
    first = Fact("2", "Capital of Peru?", "Lima", "Rome")
    again = Fact("3", "capital  of peru?", "Lima ", "ROME")
    other_old = Fact("4", "Capital of Peru?", "Cusco", "Rome")
    one = Fact("5", "Capital of Chile?", "Santiago", "Rome")
    two = Fact("6", "capital of chile?", "Santiago", "Lima")
    three = Fact("7", "Capital of Chile?", "Santiago", "Rome")
    cleaned = clean([nothing, one, first, again, two, other_old, three])
    assert cleaned.facts == [first]
    assert cleaned.left_out == {
        "changes nothing": [nothing],
        "repeats": [again, other_old],
        "contradicts": [one, two, three],
    }


def test_what_changes_nothing_contradicts_nothing():
    stays, changes = Fact("1", "p", "a", "a"), Fact("2", "p", "a", "b")
    assert clean([stays, changes]).facts == [changes]


def test_the_report_counts_and_shows_three():
    facts = [Fact(str(n), f"p{n}", "a", "A") for n in range(4)] + [Fact("x", "q", "a", "b")]
    assert clean(facts).report() == (
        "4 of 5 facts left out (changes nothing): [0] 'p0': 'a' → 'A'; [1] 'p1': 'a' → 'A'; [2] 'p2': 'a' → 'A'; …"
    )
    assert clean(facts[-1:]).report() == ""


@given(some_facts)
def test_nothing_is_lost_and_a_second_cleaning_finds_nothing(facts):
    cleaned = clean(facts)
    everything = [*cleaned.facts, *(fact for left in cleaned.left_out.values() for fact in left)]
    assert sorted(fact.id for fact in everything) == sorted(fact.id for fact in facts)
    assert clean(cleaned.facts).left_out == {}
    prompts = [fact.prompt.strip().casefold() for fact in cleaned.facts]
    assert len(set(prompts)) == len(prompts)


FACTS = [Fact(str(n), f"p{n}", "a", "b") for n in range(20)]


def test_the_first_ones_or_a_sample_in_the_files_order():
    assert choose(FACTS, None, 3) == (FACTS, [])
    assert choose(FACTS, 5) == (FACTS[:5], [])
    sample, notes = choose(FACTS, 5, seed=1)
    assert sample == choose(FACTS, 5, seed=1)[0]
    assert sample != choose(FACTS, 5, seed=2)[0]
    assert [fact.id for fact in sample] == ["2", "3", "4", "8", "18"], "a seed's facts are the same in every version"
    assert sample == [fact for fact in FACTS if fact in sample]
    assert notes == []


@pytest.mark.parametrize("seed", [None, 1])
def test_a_limit_beyond_the_facts_is_a_note(seed):
    chosen, notes = choose(FACTS, 21, seed)
    assert chosen == FACTS
    assert notes == ["the limit is 21, but there are only 20 facts; all are taken"]


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(limit):
    with pytest.raises(InputError, match="at least 1"):
        choose(FACTS, limit)


def test_no_facts_are_refused():
    with pytest.raises(InputError, match="no facts are left"):
        choose([], None)
