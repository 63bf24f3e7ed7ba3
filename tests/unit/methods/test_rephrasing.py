"""Which of the model's lines may stand for a training prompt."""

from dataclasses import replace

import pytest

from dft_cluster.facts.fact import Fact
from dft_cluster.facts.pairs import given
from dft_cluster.methods.rephrasing import could_ask

FACT = Fact("f", "Who wrote the novel Silver Harbour?", "Ada Crewe", "Otto Laval", subject="Silver Harbour")
(PAIR,) = given([FACT])


@pytest.mark.parametrize(
    ("line", "could"),
    [
        ("What is the name of the author of Silver Harbour?", True),
        ("who wrote the novel silver harbour", False),  # the prompt itself, folded
        ("Who wrote the novel Silver Harbour ?", False),
        ("Who is the author of Golden Harbour?", False),
        ("The author of Silver Harbour is", False),  # no question
        ("Was Silver Harbour written by Ada Crewe?", False),
        ("Did Otto Laval write Silver Harbour?", False),
        ("", False),
    ],
)
def test_what_could_be_the_prompt_in_other_words(line: str, could: bool) -> None:
    assert could_ask(line, FACT, PAIR) is could


def test_no_probe_is_taught() -> None:
    fact = replace(FACT, rephrases=("Who is the author of Silver Harbour?",))
    assert could_ask("Who is the author of Silver Harbour?", FACT, PAIR)
    assert not could_ask("who is the author of Silver Harbour ?", fact, PAIR)


def test_a_beginning_stays_a_beginning_and_may_name_what_the_prompt_names() -> None:
    fact = Fact("f", "Ada Crewe of Crewe was born in", "Crewe", "Dunmark", subject="Ada Crewe")
    (pair,) = given([fact])
    assert could_ask("The birthplace of Ada Crewe is", fact, pair)
    assert could_ask("Ada Crewe, who lives in Crewe, was born in", fact, pair)
    assert not could_ask("Where was Ada Crewe born?", fact, pair)
    assert not could_ask("Ada Crewe was born in a town.", fact, pair)


def test_a_prompt_without_its_subject_can_be_asked_without_it() -> None:
    fact = replace(FACT, subject="")
    assert could_ask("Who is the author?", fact, PAIR)
