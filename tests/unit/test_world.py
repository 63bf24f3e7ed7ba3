"""The shipped facts: whole, unambiguous, and with probes that the facts themselves cannot change."""

import json
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import dft_cluster.facts
from dft_cluster.facts.cleaning import clean
from dft_cluster.facts.readers import read

WORLD = Path(dft_cluster.facts.__file__).with_name("world.jsonl")
ROWS = [json.loads(line) for line in WORLD.read_text(encoding="utf-8").splitlines()]
FIELDS = {"id", "subject", "prompt", "target_old", "target_new", "rephrase", "locality", "extra"}
DATE = re.compile(r"\d{4}(-(0[1-9]|1[0-2])(-(0[1-9]|[12]\d|3[01]))?)?")


def wrong(fits):
    """The ids of the facts that do not fit: a failing test names them all at once."""
    return [row["id"] for row in ROWS if not fits(row)]


def asked(row):
    """Every wording in which a fact asks for its answer."""
    return [row["prompt"], *row["rephrase"]]


def answers(row):
    return [row["target_old"], row["target_new"]]


def texts(row):
    probes = [text for probe in row["locality"] for text in (probe["prompt"], probe["answer"])]
    return [row["id"], row["subject"], *asked(row), *answers(row), *probes, *row["extra"].values()]


def test_every_fact_has_the_same_fields():
    assert wrong(lambda row: row.keys() == FIELDS) == []
    assert wrong(lambda row: row["extra"].keys() == {"relation", "date", "source"}) == []
    assert wrong(lambda row: all(probe.keys() == {"prompt", "answer"} for probe in row["locality"])) == []


def test_every_field_is_filled():
    assert wrong(lambda row: all(text and text == text.strip() for text in texts(row))) == []


def test_dates_are_years_months_or_days():
    assert wrong(lambda row: DATE.fullmatch(row["extra"]["date"])) == []


def test_old_and_new_differ_and_neither_holds_the_other():
    def apart(row):
        old, new = (answer.casefold() for answer in answers(row))
        return old not in new and new not in old

    assert wrong(apart) == []
    assert wrong(lambda row: not any(answer.endswith(".") for answer in answers(row))) == []


def test_two_more_wordings_each_name_the_subject():
    assert wrong(lambda row: len(row["rephrase"]) == 2) == []
    assert wrong(lambda row: all(row["subject"] in text for text in asked(row))) == []


def test_no_wording_gives_an_answer_away():
    def silent(row):
        words = [rf"(?<!\w){re.escape(answer)}(?!\w)" for answer in answers(row)]
        return not any(re.search(word, text) for word in words for text in asked(row))

    assert wrong(silent) == []


def test_two_locality_probes_have_answers_of_their_own():
    assert wrong(lambda row: len(row["locality"]) == 2) == []
    assert wrong(lambda row: not {probe["answer"] for probe in row["locality"]} & {*answers(row)}) == []


def test_there_are_enough_facts_of_enough_kinds():
    kinds = Counter(row["extra"]["relation"] for row in ROWS)
    assert len(ROWS) >= 150
    assert len(kinds) >= 10
    assert min(kinds.values()) >= 3


def test_nothing_is_asked_twice():
    assert len({row["id"] for row in ROWS}) == len(ROWS)
    assert len({(row["subject"], row["extra"]["relation"]) for row in ROWS}) == len(ROWS)
    repeated = Counter(text.casefold() for row in ROWS for text in asked(row))
    assert [text for text, times in repeated.items() if times > 1] == []


def test_no_locality_probe_asks_what_a_fact_changes():
    changed = {text.casefold() for row in ROWS for text in asked(row)}
    probes = Counter(probe["prompt"].casefold() for row in ROWS for probe in row["locality"])
    assert changed & probes.keys() == set()
    assert [prompt for prompt, times in probes.items() if times > 2] == []


def test_the_first_twenty_are_a_mixed_sample():
    first = ROWS[:20]
    assert len({row["subject"] for row in first}) == 20
    assert len({row["target_new"] for row in first}) == 20
    assert len({row["extra"]["relation"] for row in first}) >= 6


def test_relations_are_spread_through_the_file():
    relations = [row["extra"]["relation"] for row in ROWS]
    assert [one for one, following in pairwise(relations) if one == following] == []


def test_the_project_reads_every_fact_and_leaves_none_out():
    facts = read(str(WORLD)).facts
    assert [fact.id for fact in facts] == [row["id"] for row in ROWS]
    assert [fact.id for fact in facts if len(fact.rephrases) != 2 or len(fact.locality) != 2] == []
    assert clean(facts).facts == facts
