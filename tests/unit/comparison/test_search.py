import pytest

from dft_cluster.comparison.search import (
    Search,
    TrialFailedError,
    better,
    halve,
    rule,
    rungs,
)
from dft_cluster.comparison.settings import SearchSettings, settings_to_try
from dft_cluster.errors import InputError
from dft_cluster.facts.fact import Fact

FACTS = [Fact(str(i), f"p{i}", "a", "b") for i in range(45)]
VALUES = {"train.lr": [1, 2, 3], "method.top": [0.1, 0.2, 0.3]}


def budget(**more):
    return SearchSettings(over={}, **{"trials": 9, "device_seconds": 1e9, **more})


class Bench:
    """Says of a setting what the test wants, and remembers what it was asked."""

    def __init__(self, token, seconds=lambda facts: float(facts)):
        self.token, self.seconds, self.asked = token, seconds, []

    def __call__(self, number, setting, facts):
        self.asked.append((number, tuple(fact.id for fact in facts)))
        return {1: self.token(setting)}, self.seconds(len(facts))


def balanced(setting):
    """The higher the sum, the better; all reach the reliability."""
    value = 10 * setting["train.lr"] + 100 * setting["method.top"]
    return {"reliability": 96.0, "generality": value, "locality": value}


def run(search, bench, found=None, facts=FACTS):
    return halve(search, VALUES, facts, bench, found or Search(), lambda: None)


def test_rungs_have_a_third_of_the_settings_and_three_times_the_facts():
    assert rungs(9, 45) == [(9, 15), (3, 45)]
    assert rungs(27, 50) == [(27, 6), (9, 17), (3, 50)]
    assert rungs(3, 50) == [(3, 50)]
    assert rungs(1, 1) == [(1, 1)]
    assert rungs(9, 2) == [(9, 1), (3, 2)]
    assert rungs(27, 50, 1) == [(27, 50)]
    assert rungs(27, 50, 2) == [(27, 17), (9, 50)]


def test_the_grid_where_it_fits_else_draws_of_it_without_repeats():
    assert len(settings_to_try(budget(), VALUES)) == 9
    drawn = settings_to_try(budget(trials=4), VALUES)
    assert len(drawn) == 4 == len({tuple(one.items()) for one in drawn})
    assert drawn == settings_to_try(budget(trials=4), VALUES)
    assert any(drawn != settings_to_try(budget(trials=4, seed=seed), VALUES) for seed in range(1, 5))


def test_the_best_third_goes_on_to_all_development_facts():
    bench = Bench(balanced)
    found = run(budget(), bench)
    assert found.chosen == {"train.lr": 3, "method.top": 0.3, "converge.keep": 1}
    assert [len(facts) for _, facts in bench.asked] == [15] * 9 + [45] * 3
    assert [number for number, _ in bench.asked[9:]] == [8, 5, 7]  # of equals the earlier
    assert found.spent == 9 * 15 + 3 * 45
    assert found.ended == "all rungs done"


def test_no_more_settings_than_trials_are_tried():
    bench = Bench(balanced)
    run(budget(trials=4), bench)
    assert len({number for number, _ in bench.asked}) == 4


def test_a_run_that_would_go_beyond_the_share_is_not_begun():
    bench = Bench(balanced)
    found = run(budget(device_seconds=100.0), bench)  # 15 seconds a run: six of them
    assert len(bench.asked) == 6
    assert found.spent == 90.0
    assert "used up" in found.ended
    assert found.chosen == {"train.lr": 2, "method.top": 0.3, "converge.keep": 1}
    later = run(budget(device_seconds=9 * 15 + 2 * 45 + 1.0), bench)
    assert later.spent == 9 * 15 + 2 * 45
    assert later.chosen == {"train.lr": 3, "method.top": 0.3, "converge.keep": 1}


def test_the_first_run_is_made_whatever_the_share():
    bench = Bench(balanced)
    found = run(budget(device_seconds=1.0), bench)
    assert len(bench.asked) == 1
    assert found.chosen == {"train.lr": 1, "method.top": 0.1, "converge.keep": 1}


def test_one_rule_for_all():
    search = budget(reliability=95.0)
    reliable = {"reliability": 95.0, "generality": 40.0, "locality": 60.0}
    balance = {"reliability": 96.0, "generality": 50.0, "locality": 50.0}
    unreliable = {"reliability": 94.9, "generality": 99.0, "locality": 99.0}
    worse = {"reliability": 90.0, "generality": 99.0, "locality": 99.0}
    ranked = sorted([worse, {}, reliable, unreliable, balance], key=lambda one: better(search, one), reverse=True)
    assert ranked == [balance, reliable, unreliable, worse, {}]  # 50 is more than the harmonic mean of 40 and 60
    assert "at least 95 %" in rule(search)


def test_the_round_to_end_with_is_chosen_too_the_earlier_of_equals():
    def rounds(number, setting, facts):
        found = balanced(setting)
        return {1: {**found, "reliability": 90.0}, 2: found, 3: found, 4: {**found, "locality": 1.0}}, 1.0

    found = run(budget(), rounds)
    assert found.chosen == {"train.lr": 3, "method.top": 0.3, "converge.keep": 2}
    assert {trial.round for trial in found.trials} == {2}
    assert found.trials[0].token == balanced(found.trials[0].setting)


def test_a_trial_that_fails_is_kept_and_never_chosen():
    def fails(number, setting, facts):
        if setting["train.lr"] == 3:
            raise TrialFailedError("NaN", 2.0)
        return {1: balanced(setting)}, 1.0

    found = run(budget(), fails)
    assert found.chosen == {"train.lr": 2, "method.top": 0.3, "converge.keep": 1}
    assert [trial.reason for trial in found.trials].count("NaN") == 3
    assert found.spent == 3 * 2.0 + 6 * 1.0 + 3 * 1.0


def test_where_all_trials_fail_nothing_is_chosen():
    def fails(number, setting, facts):
        raise TrialFailedError("NaN", 1.0)

    found = run(budget(), fails)
    assert found.chosen is None
    assert len(found.trials) == 9


def test_a_failure_that_may_have_passed_is_tried_anew_and_is_no_part_of_the_share():
    def fails(number, setting, facts):
        raise TrialFailedError("no room", 1e9, passing=True)

    found = Search()
    for start, known in enumerate((1, 1, 2, 2, 3, 3), 1):  # a lost start stops at the first trial that has some left
        found = run(budget(), fails, Search.from_json(found.to_json()))
        assert (found.chosen, found.ended, len(found.trials), found.spent) == (None, "", known, 0.0), start
    bench = Bench(balanced)
    again = run(budget(), bench, Search.from_json(found.to_json()))
    assert len(bench.asked) == 12
    assert again.chosen == {"train.lr": 3, "method.top": 0.3, "converge.keep": 1}
    assert again.spent == 9 * 15 + 3 * 45, "what is made anew costs its share once"


def test_a_search_stops_at_a_failure_that_may_have_passed_and_goes_on_without_it_after_three_starts():
    asked = []

    def fails(number, setting, facts):
        asked.append(number)
        if setting["train.lr"] == 3:
            raise TrialFailedError("no room", 50.0, passing=True)
        return {1: balanced(setting)}, 1.0

    found = Search()
    for made in ([*range(7)], [6], [6, 7], [7], [7, 8], [8]):
        found = run(budget(), fails, Search.from_json(found.to_json()))
        assert (asked, found.ended, found.chosen, found.spent) == (made, "", None, 6.0)
        asked.clear()
    found = run(budget(), fails, Search.from_json(found.to_json()))
    assert asked == [8, 5, 2, 4], "the best third of what came to an end goes on"
    assert [trial.tries for trial in found.trials if trial.passing] == [3, 3, 3]
    assert (found.ended, found.spent) == ("all rungs done", 6.0 + 3.0)
    assert found.chosen == {"train.lr": 2, "method.top": 0.3, "converge.keep": 1}


def test_a_search_goes_on_where_it_stopped():
    class StoppedError(Exception):
        pass

    class Dies(Bench):
        def __call__(self, number, setting, facts):
            if len(self.asked) == 7:
                raise StoppedError
            return super().__call__(number, setting, facts)

    first, kept = Dies(balanced), Search()
    with pytest.raises(StoppedError):
        run(budget(), first, kept)
    second = Bench(balanced)
    found = run(budget(), second, Search.from_json(kept.to_json()))
    whole = Bench(balanced)
    assert run(budget(), whole).chosen == found.chosen
    assert first.asked + second.asked == whole.asked
    assert found.spent == 9 * 15 + 3 * 45


def test_a_search_without_development_facts_is_refused():
    with pytest.raises(InputError, match="no development facts"):
        run(budget(), Bench(balanced), facts=[])
