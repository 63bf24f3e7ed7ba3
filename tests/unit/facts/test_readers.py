import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from dft_cluster.errors import InputError
from dft_cluster.facts.cleaning import choose, clean
from dft_cluster.facts.fact import Fact, Probe
from dft_cluster.facts.readers import KNOWN, read

DATA = Path(__file__).parents[4] / "shared" / "data"
MINE = {"prompt": "Oslo lies in", "old": "Norway", "new": "Chile"}

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the development data is not here")


def lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_three_fields_are_enough(tmp_path):
    reading = read(lines(tmp_path / "own.jsonl", MINE, {**MINE, "id": 7}))
    assert reading.facts == [Fact("1", **MINE), Fact("7", **MINE)]
    assert reading.form == "common"
    assert any("taken for 'common'" in note for note in reading.notes)


def test_a_named_form_is_not_told(tmp_path):
    assert read(lines(tmp_path / "own.jsonl", MINE), "common").notes == []
    with pytest.raises(
        InputError, match="the field `answers` is missing; the fields there are: `prompt`, `old`, `new`"
    ):
        read(lines(tmp_path / "own.jsonl", MINE), "mend")


def test_an_unknown_form_is_answered_with_the_list():
    with pytest.raises(InputError, match=f"'sql'.*{', '.join(KNOWN)}"):
        read("facts.jsonl", "sql")


def test_the_shipped_facts_have_their_own_form():
    with pytest.raises(InputError, match="the embedded facts are in the form 'common', not 'mend'"):
        read("embedded", "mend")


def test_reading_facts_loads_nothing_heavy():
    code = """
import sys
import dft_cluster.facts.readers, dft_cluster.facts.cleaning, dft_cluster.facts.pairs
print(sorted({"torch", "ray", "transformers", "datasets", "numpy"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_line_of_a_broken_record_is_named(tmp_path):
    path = lines(tmp_path / "own.jsonl", MINE, {"prompt": "Oslo lies in", "new": "Chile"})
    with pytest.raises(InputError, match=r"own\.jsonl, line 2: the field `old` or `target_old` is missing"):
        read(path)


def test_ids_become_distinct(tmp_path):
    rows = [{**MINE, "id": i} for i in ("a", "a", "a#2", "a")]
    reading = read(lines(tmp_path / "own.jsonl", *rows))
    assert [fact.id for fact in reading.facts] == ["a", "a#3", "a#2", "a#4"]
    assert any(note.startswith("2 ids were taken already") for note in reading.notes)


def test_csv(tmp_path):
    path = tmp_path / "own.CSV"
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        rows = csv.writer(file)
        rows.writerow(
            [
                "id",
                "prompt",
                "old",
                "new",
                "subject",
                "rephrase",
                "locality_prompt",
                "locality_answer",
                "remark",
            ]
        )
        rows.writerow(
            [
                "a",
                "Oslo lies in",
                "Norway",
                "Chile, South",
                "Oslo",
                "Where is Oslo? | Oslo is in",
                "x",
                "y",
                "",
            ]
        )
        rows.writerow(["", "Bergen lies in", "Norway", "Peru", "", "", "", "", ""])
    reading = read(str(path))
    assert reading.form == "csv"
    assert reading.facts == [
        Fact(
            "a",
            "Oslo lies in",
            "Norway",
            "Chile, South",
            "Oslo",
            rephrases=("Where is Oslo?", "Oslo is in"),
            locality=(Probe("x", "y"),),
        ),
        Fact("2", "Bergen lies in", "Norway", "Peru"),
    ]
    assert [note for note in reading.notes if "remark" in note]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "prompt,old,new\nOslo lies in,,Chile\n",
            r"f\.csv, line 2: the field `old` or `target_old` is empty",
        ),
        ("prompt,old,new\nOslo lies in,Norway\n", "line 2: the field `new` or `target_new` is missing"),
        (
            "prompt;old;new\nOslo;Norway;Chile\n",
            "the field .* is missing; the fields there are: `prompt;old;new`",
        ),
    ],
)
def test_what_a_csv_lacks_is_named(tmp_path, text, said):
    path = tmp_path / "f.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=said):
        read(str(path))


def alpaca(path, *rows, listed=True):
    named = [dict(zip(("instruction", "input", "output"), row, strict=True)) for row in rows]
    if listed:
        path.write_text(json.dumps(named), encoding="utf-8")
        return str(path)
    return lines(path, *named)


def test_pairs_are_matched_by_instruction_and_input(tmp_path):
    old = alpaca(tmp_path / "old.json", ("Where?", "Oslo", "In Norway."), ("Who?", "", "Anne."), ("Gone?", "", "Yes."))
    new = alpaca(
        tmp_path / "new.jsonl",
        ("Who?", "", "Eva."),
        ("Where?", "Oslo", "In Chile."),
        ("Where?", "Rome", "-"),
        listed=False,
    )
    reading = read(f"{old},{new}")
    assert reading.form == "pairs"
    assert reading.facts == [
        Fact("1", "Who?", "Anne.", "Eva."),
        Fact("2", "Where?\nOslo", "In Norway.", "In Chile."),
    ]
    assert [note.split(": ", 1)[1] for note in reading.notes] == [
        f"1 records left out, as {new} has no partner to them, the first: 'Gone?'",
        f"1 records left out, as {old} has no partner to them, the first: 'Where?'",
    ]


def test_probes_join_the_fact_of_their_prompt(tmp_path):
    old = alpaca(tmp_path / "old.json", ("Where?", "Oslo", "In Norway."))
    new = alpaca(tmp_path / "new.json", ("Where?", "Oslo", "In Chile."))
    probes = lines(
        tmp_path / "probes.jsonl",
        {
            "prompt": "Where?\nOslo",
            "rephrase": ["Oslo is where?"],
            "locality": [{"prompt": "x", "answer": "y"}],
        },
        {"prompt": "where? oslo", "rephrase": ["Find Oslo"]},
        {"prompt": "elsewhere"},
    )
    reading = read(f"{old},{new}", "pairs", probes=probes)
    assert reading.facts[0].rephrases == ("Oslo is where?", "Find Oslo")
    assert reading.facts[0].locality == (Probe("x", "y"),)
    assert reading.notes == [f"{probes}: 1 probes match no fact's prompt, the first: 'elsewhere'"]


def test_pairs_need_two_files_that_share_a_question(tmp_path):
    old = alpaca(tmp_path / "old.json", ("Where?", "", "Norway"))
    new = alpaca(tmp_path / "new.json", ("Who?", "", "Eva"))
    with pytest.raises(InputError, match="no instruction and input stand in both files"):
        read(f"{old},{new}")
    for paths in (old, f"{old},", f"{old},{new},{new}"):
        with pytest.raises(InputError, match=r"exactly two files, given as old\.json,new\.json"):
            read(paths, "pairs")
    with pytest.raises(InputError, match=r"gone\.json: there is no such file"):
        read(f"{old},{tmp_path / 'gone.json'}")


def test_several_old_outputs_are_spellings_of_the_first(tmp_path):
    old = alpaca(tmp_path / "old.json", ("Where?", "", "Norway"), ("Where?", "", "Norge"))
    new = alpaca(tmp_path / "new.json", ("Where?", "", "Chile"))
    assert read(f"{old},{new}").facts == [Fact("1", "Where?", "Norway", "Chile", aliases=("Norge",))]


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)


@pytest.mark.usefixtures("hub_cache")
def test_hub_records_are_told_like_a_files(tmp_path):
    rows = [
        {"case_id": 5, "prompt": "Oslo lies in", "ground_truth": ["Norway"], "target_new": "Chile"},
        {"case_id": 6, "prompt": "Rome lies in", "ground_truth": ["Italy", "Italia"], "target_new": "Peru"},
    ]
    rows[0]["locality"] = {"Kind": [{"prompt": "x", "ground_truth": ["y"]}]}
    rows[1]["locality"] = {"Other": [{"prompt": "z", "ground_truth": ["w"]}]}
    reading = read("json", "hub", file=lines(tmp_path / "rows.jsonl", *rows))
    assert reading.form == "knowedit"
    assert reading.facts == [
        Fact("5", "Oslo lies in", "Norway", "Chile", locality=(Probe("x", "y"),)),
        Fact("6", "Rome lies in", "Italy", "Peru", locality=(Probe("z", "w"),), aliases=("Italia",)),
    ]


@pytest.mark.usefixtures("hub_cache")
def test_what_the_hub_lacks_is_named(tmp_path):
    with pytest.raises(InputError, match=r"data set 'json', file '.*gone\.jsonl', split 'train': not loadable"):
        read("json", "hub", file=str(tmp_path / "gone.jsonl"))
    with pytest.raises(InputError, match="split 'elsewhere': not loadable"):
        read("json", "hub", file=lines(tmp_path / "rows.jsonl", MINE), split="elsewhere")
    with pytest.raises(InputError, match=r"someone/something: there is no such file; .* needs the format 'hub'"):
        read("someone/something")
    with pytest.raises(InputError, match="the facts format is 'auto', not 'hub'"):
        read("someone/something", file="x.json")


def test_the_shipped_facts_can_all_be_used():
    reading = read("embedded")
    assert len(reading.facts) > 0
    assert reading.notes == []
    assert clean(reading.facts).left_out == {}


@needs_data
@pytest.mark.parametrize(
    ("name", "form", "count"),
    [
        ("upstream/counterfact.json", "counterfact", 600),
        ("upstream/counterfact-edit.json", "easyedit", 2000),
        ("upstream/zsre_mend_train.json", "mend", 998),
        ("upstream/zsre_mend_eval_portability_gpt4.json", "mend", 100),
        ("upstream/ZsRE-test-all.json", "knowedit", 100),
        ("counterfact.jsonl", "common", 17000),
        ("zsre.jsonl", "common", 7000),
        ("wikifactdiff.jsonl", "common", 5144),
    ],
)
def test_upstream_files_are_told_and_read(name, form, count):
    reading = read(str(DATA / name))
    assert (reading.form, len(reading.facts)) == (form, count)
    assert len({fact.id for fact in reading.facts}) == count
    assert not [note for note in reading.notes if "not used" in note]
    assert all(fact.prompt and fact.old and fact.new for fact in reading.facts)
    assert all("{}" not in fact.prompt for fact in reading.facts)
    assert sum(bool(fact.locality) for fact in reading.facts) >= 0.9 * count


@needs_data
def test_the_first_counterfact_record_in_full():
    fact = read(str(DATA / "upstream/counterfact.json")).facts[0]
    assert (fact.id, fact.subject, fact.old, fact.new) == ("4482", "Spike Hughes", "London", "Philadelphia")
    assert fact.prompt == "Spike Hughes originates from"
    assert (len(fact.rephrases), len(fact.locality)) == (2, 10)
    assert fact.locality[0] == Probe("Max Mosley originates from", "London")


@needs_data
def test_upstream_and_common_form_agree():
    """The same zsRE records in MEND's form and in the common one give the same change and the same probes."""
    common = {fact.prompt: fact for fact in read(str(DATA / "zsre.jsonl")).facts}
    mend = read(str(DATA / "upstream/zsre_mend_train.json")).facts
    shared = [(fact, common[fact.prompt]) for fact in mend if fact.prompt in common]
    assert len(shared) > 500
    for ours, theirs in shared:
        assert (ours.old, ours.new, ours.subject) == (theirs.old, theirs.new, theirs.subject)
        assert (ours.rephrases, ours.locality, ours.aliases) == (
            theirs.rephrases,
            theirs.locality,
            theirs.aliases,
        )


@needs_data
def test_only_true_paraphrases_of_counterfact_stay():
    rows = [json.loads(line) for line in (DATA / "counterfact.jsonl").read_text(encoding="utf-8").splitlines()]
    true = {row["id"] for row in rows if row["extra"]["rephrase_kind"] == "paraphrase"}
    reading = read(str(DATA / "counterfact.jsonl"))
    assert {fact.id for fact in reading.facts if fact.rephrases} == true
    assert any(f"not paraphrases ({len(rows) - len(true)} times)" in note for note in reading.notes)


@needs_data
def test_the_first_fifty_without_noop():
    """`noop` marks exactly the records that change nothing, and the limit counts what is left."""
    rows = [json.loads(line) for line in (DATA / "zsre.jsonl").read_text(encoding="utf-8").splitlines()]
    noop = {row["id"] for row in rows if row["extra"].get("noop")}
    cleaned = clean(read(str(DATA / "zsre.jsonl")).facts)
    assert {fact.id for fact in cleaned.left_out["changes nothing"]} == noop
    assert list(cleaned.left_out) == ["changes nothing"]
    chosen, _ = choose(cleaned.facts, 50)
    assert [fact.id for fact in chosen] == [row["id"] for row in rows if row["id"] not in noop][:50]


@needs_data
def test_no_template_of_counterfact_keeps_two_targets():
    kept = clean(read(str(DATA / "counterfact.jsonl")).facts)
    assert len({fact.prompt for fact in kept.facts}) == len(kept.facts)
    assert len(kept.left_out["contradicts"]) > 300
