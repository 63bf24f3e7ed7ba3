from dataclasses import replace

import pytest

from dft_cluster.comparison.loading import checked
from dft_cluster.comparison.run import read_data
from dft_cluster.comparison.settings import ReportSettings, SearchSettings
from dft_cluster.comparison.split import split
from dft_cluster.errors import InputError
from dft_cluster.facts.fact import Fact, Probe, fingerprint_of


def facts(count=30):
    return [Fact(str(i), f"Where is {i}?", "here", "there", subject=f"S{i}") for i in range(count)]


def search(count=10, **more):
    return SearchSettings(over={}, facts=count, **more)


def ids(chosen):
    return [fact.id for fact in chosen]


def test_the_first_or_a_seeded_sample_is_reported():
    first = split(facts(), ReportSettings(facts=5))
    assert ids(first.reported) == ["0", "1", "2", "3", "4"]
    assert first.development == []
    one, again, other = (split(facts(), ReportSettings(facts=5, seed=seed)) for seed in (1, 1, 2))
    assert ids(one.reported) == ids(again.reported) != ids(other.reported)


def test_development_facts_are_others_and_drawn_by_seed():
    one, again = (split(facts(), ReportSettings(facts=5), search()) for _ in range(2))
    assert len(one.development) == 10
    assert not set(ids(one.reported)) & set(ids(one.development))
    assert ids(one.development) == ids(again.development)
    other = split(facts(), ReportSettings(facts=5), search(seed=1))
    assert ids(other.development) != ids(one.development)
    assert ids(other.reported) == ids(one.reported)


def test_a_fact_about_a_reported_subject_or_prompt_is_no_development_fact():
    reported = facts(3)
    reported[1] = replace(reported[1], locality=(Probe("Who is near 1?", "a"),))
    shared = [
        Fact("subject", "Who is s1?", "a", "b", subject="s1 "),
        Fact("prompt", "WHERE is  0?", "a", "b"),
        Fact("rephrased", "Something else?", "a", "b", rephrases=("Where is 2?",)),
        Fact("beside", "What else?", "a", "b", locality=(Probe("Who is near 1?", "a"),)),
        Fact("behind", "What then?", "a", "b", portability=(Probe("who is  NEAR 1?", "a"), Probe("Who is far?", "a"))),
        Fact("taught", "Who is near 1?", "a", "b"),
        Fact("apart", "Something of its own?", "a", "b", locality=(Probe("Who is far?", "a"),)),
        Fact("no subject", "Something without one?", "a", "b", subject=""),
    ]
    found = split([*reported, *shared], ReportSettings(facts=3), search())
    assert sorted(ids(found.development)) == ["apart", "behind", "beside", "no subject"]
    kept = {fact.id: [probe.prompt for probe in (*fact.locality, *fact.portability)] for fact in found.development}
    assert kept == {"apart": ["Who is far?"], "behind": ["Who is far?"], "beside": [], "no subject": []}
    assert any("2 probes are kept from the search" in note for note in found.notes)
    assert any("4 facts are kept from the search" in note for note in found.notes)
    assert any("4 development facts where 10" in note for note in found.notes)


def test_what_another_data_set_reports_is_no_development_fact():
    found = split(facts(), ReportSettings(facts=5), search(), facts(20)[5:])
    assert sorted(map(int, ids(found.development))) == list(range(20, 30))


def test_data_sets_of_one_file_keep_each_others_reported_facts_from_the_search(tiny_facts):
    """The first two facts are reported of one, the first five of the other."""
    data = {
        label: {"facts": {"path": str(tiny_facts)}, "report": {"facts": count}}
        for label, count in (("two", 2), ("five", 5))
    }
    tree = {"models": {"m": {}}, "data": data, "methods": {"full": {"method": {"name": "full"}}}}
    settings = checked({**tree, "search": {"facts": 3, "over": {"full": {"train.lr": [1e-4]}}}})
    splits = read_data(settings)
    assert len(splits["two"].reported) == 2
    assert not set(ids(splits["two"].development)) & set(ids(splits["five"].reported))


def test_without_development_facts_a_search_is_refused():
    with pytest.raises(InputError, match="no development facts are left: 30 of 30"):
        split(facts(), ReportSettings(facts=30), search())
    assert len(split(facts(), ReportSettings(facts=30)).reported) == 30


def test_only_facts_with_the_probes_asked_for():
    rich = Fact("rich", "p", "a", "b", rephrases=("x", "y"), locality=tuple(Probe(f"q{i}", "a") for i in range(10)))
    poor = Fact("poor", "q", "a", "b", rephrases=("z",), locality=(Probe("q", "a"),))
    found = split([poor, rich], ReportSettings(facts=5, rephrases=2, locality=10))
    assert ids(found.reported) == ["rich"]
    assert any("1 of 2 facts left out" in note for note in found.notes)
    with pytest.raises(InputError, match="no facts are left to report"):
        split([poor], ReportSettings(rephrases=2))


def test_the_fingerprint_tells_facts_apart():
    assert fingerprint_of(facts(3)) == fingerprint_of(facts(3)) != fingerprint_of(facts(4))
