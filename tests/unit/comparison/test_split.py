from dataclasses import replace

import pytest

from dft_cluster.comparison.loading import checked
from dft_cluster.comparison.run import read_data
from dft_cluster.comparison.settings import ReportSettings, SearchSettings
from dft_cluster.comparison.split import split
from dft_cluster.errors import InputError
from dft_cluster.facts.fact import Fact, Probe, fingerprint_of
from dft_cluster.facts.readers import read


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


def test_data_are_read_where_only_the_methods_make_whole_runs_of_the_base(tiny_facts):
    """`method.layers` goes with these methods, and not with the one of a config that names none."""
    tree = {
        "base": {"method": {"layers": [6]}, "facts": {"path": str(tiny_facts)}},
        "models": {"m": {}},
        "data": {"d": {}},
        "methods": {"rome": {"method": {"name": "rome"}}, "ft_c": {"method": {"name": "ft_c"}}},
    }
    assert read_data(checked(tree))["d"].reported


def keeping(tmp_path, tiny_facts, prompts, *, train=None, over=None):
    """The first two of the tiny facts are reported in one data set, the first five in another; `full` is searched."""
    kept = tmp_path / "kept.txt"
    kept.write_text("\n".join(prompts))
    facts = {"path": str(tiny_facts)}
    tree = {
        "base": {"train": {"keep_prompts": str(kept), **(train or {})}},
        "models": {"m": {}},
        "data": {"d": {"facts": facts}, "e": {"facts": facts, "report": {"facts": 5}}},
        "methods": {"full": {"method": {"name": "full"}}, "dft": {"train": {"keep": 4}}},
        "report": {"facts": 2},
    }
    return tree | {"search": {"facts": 3, "over": {"full": over or {"train.lr": [1e-4]}}}}


@pytest.mark.parametrize(("train", "over"), [({"keep": 3}, None), (None, {"train.keep": [0, 3]})])
def test_a_trial_is_not_trained_on_prompts_about_reported_facts(tmp_path, tiny_facts, train, over):
    reported = read(str(tiny_facts)).facts[:5]
    near = [reported[4].prompt.upper(), reported[0].locality[0].prompt, f"Some like {reported[3].subject}, who"]
    tree = keeping(tmp_path, tiny_facts, ["Snow is", *near], train=train, over=over)
    with pytest.raises(InputError) as caught:
        read_data(checked(tree))
    told = str(caught.value)
    assert told.startswith(f"m.d.full: train.keep_prompts: 3 of 4 prompts in {tmp_path / 'kept.txt'} are "), told
    assert repr(near[0]) in told and told.endswith("Right would be a file without them")
    assert "\n" not in told, "one file is told of once"
    read_data(checked({**tree, "search": None}))


def test_prompts_to_keep_that_no_trial_trains_on_may_be_about_anything(tmp_path, tiny_facts):
    """Those of a method that is not searched are sifted by the reported facts, which are its own."""
    near = [fact.prompt for fact in read(str(tiny_facts)).facts[:2]]
    read_data(checked(keeping(tmp_path, tiny_facts, near)))
    read_data(checked(keeping(tmp_path, tiny_facts, ["Snow is", "Ice is"], train={"keep": 2})))


def test_a_file_of_prompts_that_is_not_there_is_told_before_a_search(tmp_path, tiny_facts):
    tree = keeping(tmp_path, tiny_facts, [], train={"keep": 2})
    (tmp_path / "kept.txt").unlink()
    with pytest.raises(InputError, match=r"^m\.d\.full: train\.keep_prompts: .*No such file"):
        read_data(checked(tree))


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
