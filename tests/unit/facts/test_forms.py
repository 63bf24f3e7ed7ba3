import pytest

from dft_cluster.errors import InputError
from dft_cluster.facts.fact import Fact, Probe
from dft_cluster.facts.forms import FORMS, tell
from dft_cluster.facts.records import Record

RECORDS = {
    "common": {
        "id": "k-1",
        "subject": "Oslo",
        "prompt": "Oslo lies in",
        "target_new": "Chile",
        "target_old": "Norway",
        "rephrase": ["Oslo is found in"],
        "locality": [{"prompt": "Bergen lies in", "answer": "Norway"}],
        "extra": {
            "rephrase_kind": "paraphrase",
            "answers": ["Norway", "Kingdom of Norway"],
            "portability": {
                "Recalled Relation": "-",
                "New Question": "Oslo's continent?",
                "New Answer": "America",
            },
        },
    },
    "counterfact": {
        "case_id": 3,
        "requested_rewrite": {
            "prompt": "{} lies in {0.__class__}",
            "subject": "Oslo",
            "target_new": {"str": "Chile", "id": "Q298"},
            "target_true": {"str": "Norway", "id": "Q20"},
        },
        "paraphrase_prompts": ["Oslo is found in"],
        "neighborhood_prompts": ["Bergen lies in", "Tromsø lies in"],
        "generation_prompts": ["Oslo's food is"],
    },
    "mend": {
        "subject": "Oslo",
        "src": "Where is Oslo?",
        "pred": "Sweden",
        "rephrase": "Oslo is where?",
        "alt": "Chile",
        "answers": ["Norway", "Kingdom of Norway", "norway"],
        "loc": "nq question: who sang",
        "loc_ans": "Nina",
        "portability": {"New Question": "Oslo's continent?", "New Answer": "America"},
    },
    "easyedit": {
        "case_id": 0,
        "prompt": "Oslo lies in",
        "target_new": "Chile",
        "subject": "Oslo",
        "ground_truth": "Norway",
        "rephrase_prompt": "Oslo is found in",
        "locality_prompt": "Bergen lies in",
        "locality_ground_truth": "Norway",
    },
    "knowedit": {
        "subject": "Oslo",
        "target_new": "Chile",
        "prompt": "Oslo lies in",
        "ground_truth": ["Norway", "Norge"],
        "locality": {
            "Relation_Specificity": [{"prompt": "The mayor of Oslo is", "ground_truth": [["Anne", "A."]]}],
            "Forgetfulness": [{"prompt": ["Oslo was called"], "ground_truth": "Christiania"}],
        },
        "portability": {"Reasoning": [{"prompt": "Oslo's continent is", "ground_truth": "America"}]},
    },
}


def read(form, fields):
    return FORMS[form](Record(fields, "f, line 9", 9))


@pytest.mark.parametrize("form", RECORDS)
def test_a_record_is_told_by_its_fields(form):
    assert tell(Record(RECORDS[form], "f", 1)) == form


@pytest.mark.parametrize("form", RECORDS)
def test_every_form_gives_the_change(form):
    fact = read(form, RECORDS[form])
    assert (fact.subject, fact.old, fact.new) == ("Oslo", "Norway", "Chile")
    assert "Oslo" in fact.prompt


def test_a_single_probe_makes_no_other_form_of_a_users_record():
    fields = {"prompt": "p", "old": "o", "new": "n", "locality": {"prompt": "x", "answer": "y"}}
    assert tell(Record(fields, "f", 1)) == "common"
    assert read("common", fields).locality == (Probe("x", "y"),)


def test_a_users_probe_in_two_flat_fields_stands_beside_others():
    flat = {"prompt": "p", "old": "o", "new": "n", "locality_prompt": "x", "locality_answer": "y"}
    record = Record(flat, "f", 1)
    assert FORMS["common"](record).locality == (Probe("x", "y"),)
    assert not record.tally
    assert read("common", {**flat, "locality_answer": 0}).locality == (Probe("x", "0"),)
    both = {**flat, "locality": [{"prompt": "v", "answer": "w"}]}
    assert read("common", both).locality == (Probe("v", "w"), Probe("x", "y"))
    for half, said in (
        (
            {**flat, "locality_answer": None},
            "locality probes left out, as `locality_prompt` or `locality_answer` is empty",
        ),
        (
            {name: flat[name] for name in ("prompt", "old", "new", "locality_prompt")},
            "field `locality_prompt` not used",
        ),
    ):
        record = Record(half, "f", 1)
        assert FORMS["common"](record).locality == ()
        assert list(record.tally) == [said]


def test_a_cell_of_a_csv_may_be_empty_or_left_off():
    row = {"prompt": "p", "old": "o", "new": "n", "subject": "", "rephrase": None, "locality": "", "extra": None}
    fact = read("csv", row)
    assert (fact.subject, fact.rephrases, fact.locality) == ("", (), ())
    with pytest.raises(InputError, match="the field `new` or `target_new` is empty"):
        read("csv", row | {"new": ""})


def test_common():
    assert read("common", RECORDS["common"]) == Fact(
        id="k-1",
        subject="Oslo",
        prompt="Oslo lies in",
        old="Norway",
        new="Chile",
        rephrases=("Oslo is found in",),
        locality=(Probe("Bergen lies in", "Norway"),),
        portability=(Probe("Oslo's continent?", "America"),),
        aliases=("Kingdom of Norway",),
    )


@pytest.mark.parametrize("prompt", ["prompt", "question"])
@pytest.mark.parametrize(("old", "new"), [("old", "new"), ("target_old", "target_new")])
@pytest.mark.parametrize("rephrase", ["rephrase", "rephrases"])
def test_a_users_own_spellings(prompt, old, new, rephrase):
    fields = {prompt: "Oslo lies in", old: "Norway", new: "Chile", rephrase: "Oslo is in"}
    assert tell(Record(fields, "f", 1)) == "common"
    assert read("common", fields) == Fact("9", "Oslo lies in", "Norway", "Chile", rephrases=("Oslo is in",))


def test_generation_prompts_are_no_rephrases():
    record = Record({**RECORDS["common"], "extra": {"rephrase_kind": "generation_prompt"}}, where="f, line 1", number=1)
    assert FORMS["common"](record).rephrases == ()
    assert record.tally == {"rephrases left out, as they are not paraphrases": 1}


def test_a_field_nobody_reads_is_said():
    record = Record({"prompt": "p", "old": "o", "new": "n", "localty": []}, "f", 1)
    FORMS["common"](record)
    assert record.tally == {"field `localty` not used": 1}


def test_counterfact_takes_a_template_as_text():
    fact = read("counterfact", RECORDS["counterfact"])
    assert fact.prompt == "Oslo lies in {0.__class__}"
    assert fact.id == "3"
    assert fact.rephrases == ("Oslo is found in",)
    assert fact.locality == (Probe("Bergen lies in", "Norway"), Probe("Tromsø lies in", "Norway"))


def test_mend_takes_the_true_answer_as_the_old_one():
    fact = read("mend", RECORDS["mend"])
    assert fact.aliases == ("Kingdom of Norway", "Sweden")
    assert fact.locality == (Probe("nq question: who sang", "Nina"),)
    assert fact.portability == (Probe("Oslo's continent?", "America"),)
    assert fact.id == "9"


def test_mends_empty_new_answer_is_passed_over_but_a_missing_one_is_not():
    record = Record({**RECORDS["mend"], "alt": ""}, "f", 1)
    assert FORMS["mend"](record) is None
    assert record.tally == {"records left out, as their new answer `alt` is empty": 1}
    with pytest.raises(InputError, match="line 9: the field `alt` is missing"):
        read("mend", {name: value for name, value in RECORDS["mend"].items() if name != "alt"})


def test_what_reads_like_the_new_answer_is_no_alias_of_the_old():
    assert read("mend", {**RECORDS["mend"], "pred": "CHILE"}).aliases == ("Kingdom of Norway",)


def test_easyedit_flat_probes():
    fact = read("easyedit", RECORDS["easyedit"])
    assert (fact.id, fact.rephrases) == ("0", ("Oslo is found in",))
    assert fact.locality == (Probe("Bergen lies in", "Norway"),)
    bare = {name: RECORDS["easyedit"][name] for name in ("prompt", "target_new", "ground_truth")}
    assert tell(Record(bare, "f", 1)) == "easyedit"
    assert read("easyedit", bare).locality == ()


def test_knowedit_lays_the_kinds_together():
    fact = read("knowedit", RECORDS["knowedit"])
    assert fact.locality == (Probe("The mayor of Oslo is", "Anne"), Probe("Oslo was called", "Christiania"))
    assert fact.portability == (Probe("Oslo's continent is", "America"),)
    assert (fact.aliases, fact.rephrases) == (("Norge",), ())


def test_probes_of_a_kind_may_come_as_parallel_lists():
    kinds = {"neighbours": {"prompt": ["a", "b"], "ground_truth": ["1", "2"]}}
    assert read("knowedit", {**RECORDS["knowedit"], "locality": kinds}).locality == (
        Probe("a", "1"),
        Probe("b", "2"),
    )
    kinds["neighbours"]["ground_truth"].append("3")
    with pytest.raises(InputError, match="`locality` has 2 prompts and 3 answers"):
        read("knowedit", {**RECORDS["knowedit"], "locality": kinds})


def test_a_probe_with_an_empty_answer_is_left_out_and_one_without_is_an_error():
    record = Record({**RECORDS["common"], "locality": [{"prompt": "x", "answer": ""}]}, "f", 1)
    assert FORMS["common"](record).locality == ()
    assert record.tally == {"locality probes left out, as they have no answer": 1}
    with pytest.raises(InputError, match=r"in `locality`: the field `answer` or .* is missing; .*`reply`"):
        read("common", {**RECORDS["common"], "locality": [{"prompt": "x", "reply": "y"}]})
    with pytest.raises(InputError, match="`locality` must hold objects with `prompt` and `answer`"):
        read("common", {**RECORDS["common"], "locality": ["x"]})


@pytest.mark.parametrize(
    ("form", "field", "named"),
    [
        ("common", "prompt", "`prompt` or `question`"),
        ("common", "target_old", "`old` or `target_old`"),
        ("common", "target_new", "`new` or `target_new`"),
        ("mend", "src", "`src`"),
        ("mend", "answers", "`answers`"),
        ("easyedit", "prompt", "`prompt`"),
        ("easyedit", "ground_truth", "`ground_truth`"),
        ("easyedit", "target_new", "`target_new`"),
        ("knowedit", "prompt", "`prompt`"),
        ("knowedit", "ground_truth", "`ground_truth`"),
        ("knowedit", "target_new", "`target_new`"),
        ("counterfact", "requested_rewrite", "`subject`"),
    ],
)
def test_a_missing_field_is_named_with_the_place_and_what_is_there(form, field, named):
    rest = {name: value for name, value in RECORDS[form].items() if name != field}
    with pytest.raises(InputError, match=rf"f, line 9.*: the field {named} is missing; the fields there are: "):
        read(form, rest)


@pytest.mark.parametrize("part", ["prompt", "subject", "target_new", "target_true"])
def test_a_missing_part_of_a_rewrite_is_named(part):
    rewrite = {name: v for name, v in RECORDS["counterfact"]["requested_rewrite"].items() if name != part}
    with pytest.raises(InputError, match="in `requested_rewrite`"):
        read("counterfact", {"requested_rewrite": rewrite})


def test_an_untold_record_names_its_fields_and_the_known_forms():
    with pytest.raises(
        InputError, match=r"f, line 1: .*`text`, `label`.*common, counterfact, mend.*prompt, old and new"
    ):
        tell(Record({"text": "x", "label": "y"}, "f, line 1", 1))
    with pytest.raises(InputError, match=r"need two files, given as old\.json,new\.json"):
        tell(Record({"instruction": "x", "output": "y"}, "f", 1))
