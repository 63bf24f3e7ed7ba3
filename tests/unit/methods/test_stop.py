import pytest

from dft_cluster.config_file import validate
from dft_cluster.methods.stop import kept_round, reached, stop_reason


def config(rounds=8, every=1, **converge):
    return validate({"method": {"rounds": rounds}, "evaluate": {"every": every}, "converge": converge})


def lines(*measured, locality=()):
    """Round 0, 1, … with this exact reliability (None: not measured); `token` is 10 more."""
    told = []
    for number, exact in enumerate(measured):
        line = {"round": number}
        if exact is not None:
            line["reliability"] = {"exact": exact, "token": exact + 10}
            local = locality[number] if number < len(locality) else 50
            line["locality"] = {"exact": local, "token": local}
        told.append(line)
    return told


def test_reached_is_at_least_the_target():
    settings = config(reliability=90)
    assert [reached(lines(value)[0], settings) for value in (89.9, 90, 90.1)] == [False, True, True]
    assert not reached({"round": 1}, settings)
    assert not reached(lines(100)[0], config(reliability="off"))
    assert reached(lines(80)[0], config(reliability=90, on="token"))


def test_a_run_stops_in_the_round_that_reaches_the_target():
    settings = config(reliability=90)
    assert stop_reason(lines(0, 50), settings) is None
    assert stop_reason(lines(0, 50, 92), settings) == "reliability (exact) 92.0 reached 90 in round 2"
    assert stop_reason(lines(95), settings) == "reliability (exact) 95.0 reached 90 in round 0"
    assert (
        stop_reason(lines(0, 81), config(reliability=90, on="token"))
        == "reliability (token) 91.0 reached 90 in round 1"
    )


def test_the_target_counts_even_in_the_last_round():
    assert "reached" in stop_reason(lines(0, 90), config(rounds=1, reliability=90))
    assert stop_reason(lines(0, 89), config(rounds=1, reliability=90)) == "method.rounds=1 done"


def test_a_run_goes_on_after_a_target_that_a_later_round_lost():
    """A target in an earlier round would have stopped the run there: what counts is the last round."""
    assert stop_reason(lines(0, 95, 80), config(reliability=90, patience=3)) is None


@pytest.mark.parametrize(
    ("measured", "patience", "stops"),
    [
        ((0, 10, 10.4, 10.4), 2, True),
        ((0, 10, 10.4, 10.5), 2, False),
        ((0, 10, 9, 8), 2, True),
        ((0, 10, 9, 11), 2, False),
        ((50, 0, 0), 2, True),
        ((50, 0), 2, False),
        ((0, 0), 1, True),
        ((0, 0.5), 1, False),
        ((0,), 1, False),
        ((0, 10, 10, 10), "off", False),
        ((0, 10, None, 10, None, 10), 2, True),
        ((0, 10, None, 10, None, 10, None), 2, False),
        ((0, 10, None, 10), 2, False),
    ],
)
def test_patience_counts_measured_rounds_without_a_gain(measured, patience, stops):
    told = stop_reason(lines(*measured), config(patience=patience, reliability="off"))
    assert (told is not None) == stops
    assert told is None or told.startswith("no gain:")


def test_no_gain_says_over_what():
    told = stop_reason(lines(0, 20, 18, 19), config(patience=2, min_gain=1))
    assert told == "no gain: 2 rounds in a row added less than 1 points to reliability (exact) 20.0"


def test_the_most_rounds_end_it_whatever_else_is_off():
    settings = config(rounds=3, reliability="off", patience="off")
    assert stop_reason(lines(0, 1, 2), settings) is None
    assert stop_reason(lines(0, 1, 2, 3), settings) == "method.rounds=3 done"
    assert stop_reason(lines(0, None, None, None), settings) == "method.rounds=3 done"


def test_unmeasured_rounds_neither_reach_nor_stop():
    settings = config(every=2, reliability=90, patience=1)
    assert stop_reason(lines(0, None), settings) is None
    assert stop_reason(lines(0, None, 0), settings).startswith("no gain")
    assert stop_reason(lines(0, None, 91), settings).startswith("reliability")


@pytest.mark.parametrize(
    ("measured", "locality", "kept"),
    [
        ((0, 10, 30, 20), (), 2),
        ((0, 30, 30, 20), (), 1),
        ((0, 30, 30, 30), (100, 40, 60, 50), 2),
        ((0, 30, 30, 30), (100, 60, 60, 60), 1),
        ((90, 10, 20), (), 2),
        ((0, None, 30, None, 20, None), (), 2),
        ((0, None), (), 1),
        ((95,), (), 0),
    ],
)
def test_the_best_round_is_kept_by_reliability_then_locality_then_the_earliest(measured, locality, kept):
    assert kept_round(lines(*measured, locality=locality), config()) == kept


def test_best_is_by_the_kind_of_reliability_that_is_looked_at():
    rounds = lines(0, 10, 20)
    rounds[1]["reliability"]["token"] = 99
    assert kept_round(rounds, config(on="token")) == 1
    assert kept_round(rounds, config(on="exact")) == 2


def test_the_last_round_is_kept_where_asked_for_measured_or_not():
    assert kept_round(lines(0, 30, 20), config(keep="last")) == 2
    assert kept_round(lines(0, 30, None), config(keep="last")) == 2


def test_a_round_that_is_asked_for_by_number_is_kept_else_the_last():
    assert kept_round(lines(0, 30, 20, 40), config(keep=2)) == 2
    assert kept_round(lines(0, 30), config(keep=2)) == 1


def test_facts_without_locality_probes_are_judged_by_reliability_alone():
    rounds = [{k: v for k, v in line.items() if k != "locality"} for line in lines(0, 30, 30)]
    assert kept_round(rounds, config()) == 1
