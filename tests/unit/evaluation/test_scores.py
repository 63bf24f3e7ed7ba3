import math

import pytest

from dft_cluster.evaluation import scores
from dft_cluster.evaluation.decode import Said
from dft_cluster.evaluation.probes import Asked
from dft_cluster.facts.folding import contains, matches
from dft_cluster.facts.layout import Example


def asked(kind, *answer, fact=0):
    return Asked(kind, fact, "?", "!", Example((0, *answer), 1, 1 + len(answer)))


HELD = (asked("held", 1, 2, fact=-1), Said((0, 0), 2.0))


def figures(*probes, before=()):
    kinds, said = zip(*probes, (asked("old", 5), Said((0,), 1.0)), HELD, strict=True)
    return scores.teacher_forced(kinds, said, before)


def test_token_is_a_mean_over_probes_and_exact_their_share():
    told = figures(
        (asked("reliability", 1, 2, 3, 4), Said((1, 2, 3, 9), 0.0)),
        (asked("reliability", 7), Said((7,), 0.0)),
        (asked("reliability", 7), Said((8,), 0.0)),
        (asked("generality", 1, 2), Said((9, 2), 0.0)),
    )
    assert told["reliability"] == {"token": pytest.approx(100 * (0.75 + 1 + 0) / 3), "exact": pytest.approx(100 / 3)}
    assert told["generality"] == {"token": 50, "exact": 0}
    assert "portability" not in told and "locality" not in told


def test_many_equal_shares_make_exactly_100():
    told = figures(*[(asked("reliability", 1, 2, 3), Said((1, 2, 3), 0.0))] * 7)
    assert told["reliability"] == {"token": 100, "exact": 100}


def test_locality_is_what_round_0_said_right_or_wrong():
    local = [(asked("locality", 1, 2), Said((8, 9), 0.0)), (asked("locality", 3), Said((3,), 0.0))]
    assert figures(*local, before=[[8, 9], [3]])["locality"] == {"token": 100, "exact": 100}
    assert figures(*local, before=[(8, 9), (4,)])["locality"] == {"token": 50, "exact": 50}
    assert figures(*local, before=[[8, 0], [3]])["locality"] == {"token": 75, "exact": 50}
    with pytest.raises(ValueError, match="zip"):
        figures(*local, before=[[8, 9]])


def test_still_old_is_the_share_that_gives_the_whole_old_answer():
    kinds = [asked("old", 1, 2), asked("old", 3), asked("old", 4), asked("old", 5), HELD[0]]
    said = [Said((1, 9), 1), Said((3,), 1), Said((0,), 1), Said((5,), 1), HELD[1]]
    told = scores.teacher_forced(kinds, said, [])
    assert told["still_old"] == 50 and "old" not in told


def test_perplexity_is_by_token_not_by_window():
    kinds = [asked("old", 1), asked("held", 1, 2, 3), asked("held", 4)]
    told = scores.teacher_forced(kinds, [Said((1,), 0), Said((0, 0, 0), 1.0), Said((0,), 3.0)], [])
    assert told["perplexity"] == pytest.approx(math.exp((3 * 1.0 + 3.0) / 4))


@pytest.mark.parametrize("nll", [1e4, math.inf, math.nan])
def test_a_model_gone_wild_still_gets_its_line(nll):
    told = scores.teacher_forced([asked("old", 1), asked("held", 1)], [Said((1,), 0), Said((0,), nll)], [])
    assert told["perplexity"] == math.inf


def test_counterfacts_scores_by_hand():
    kinds, said = zip(
        (asked("reliability", 1), Said((), 1.0)), (asked("reliability", 1), Said((), 3.0)),
        (asked("old", 1), Said((), 2.0)), (asked("old", 1), Said((), 2.0)),
        (asked("generality", 1), Said((), 1.0)), (asked("generality", 1), Said((), 2.0)),
        (asked("generality", 1), Said((), 1.0)), (asked("generality", 1), Said((), 9.0)),
        *[(asked("old_rephrased", 1), Said((), 2.0))] * 4,
        (asked("locality", 1), Said((), 1.0)), (asked("new_for_locality", 1), Said((), 1.5)),
        strict=True,
    )  # fmt: skip
    # 1 < 2 and 3 > 2; 1 < 2, 2 = 2 (not likelier), 1 < 2, 9 > 2; 1 < 1.5.
    assert scores.likelihood(kinds, said) == {"ES": 50, "PS": 50, "NS": 100, "S": pytest.approx(3 / (2 / 50 + 1 / 100))}


def test_who_is_likelier_probe_by_probe():
    kinds, said = zip(
        (asked("reliability", 1, fact=0), Said((), 1.0)), (asked("reliability", 1, fact=1), Said((), 3.0)),
        (asked("old", 1, fact=0), Said((), 2.0)), (asked("old", 1, fact=1), Said((), 2.0)),
        (asked("locality", 1, fact=1), Said((), 2.0)), (asked("locality", 1, fact=1), Said((), 1.0)),
        *[(asked("new_for_locality", 1, fact=1), Said((), 2.0))] * 2,
        strict=True,
    )  # fmt: skip
    assert scores.likelier_by_fact(kinds, said) == {
        "ES": [[0, 1.0, 1.0], [1, 0.0, 0.0]], "PS": [], "NS": [[1, 0.0, 0.0], [1, 1.0, 1.0]],
    }  # fmt: skip


def test_a_score_of_nothing_makes_their_mean_nothing():
    kinds, said = zip((asked("reliability", 1), Said((), 3.0)), (asked("old", 1), Said((), 2.0)), strict=True)
    assert scores.likelihood(kinds, said) == {"ES": 0, "S": 0}


KINDS = [
    asked("reliability", 1, fact=0),
    asked("reliability", 1, fact=1),
    asked("generality", 1, fact=1),
    asked("locality", 1),
]


def test_generated_answers_are_folded():
    texts = {0: "Seven.", 1: "eight or so", 2: "EIGHT", 3: "Paris."}
    before = {0: "red", 1: "red", 2: "red", 3: "paris"}
    told = scores.generated(KINDS, texts, before, matches, ["seven", "eight"])
    assert told == {"reliability": 50, "generality": 100, "locality": 100}
    assert scores.generated(KINDS, texts, before, contains, ["seven", "eight"])["reliability"] == 100


def test_generated_locality_is_what_round_0_said():
    before = {3: "Paris, France"}
    assert scores.generated(KINDS, {3: "Paris"}, before, contains, ["a", "b"]) == {"locality": 0}
    assert scores.generated(KINDS, {3: ""}, {3: ""}, contains, ["a", "b"]) == {"locality": 100}
    assert scores.generated(KINDS, {3: "?"}, {3: "!"}, matches, ["a", "b"]) == {"locality": 0}
