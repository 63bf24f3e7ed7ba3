import contextlib
import json
import re
from decimal import Decimal

import pytest

from dft_cluster.config_file import validate
from dft_cluster.errors import InputError
from dft_cluster.facts.fact import Fact
from dft_cluster.methods.prepare import prepare, read_facts
from tests import tiny


@pytest.fixture
def settings(tmp_path):
    """A config for the tiny model and facts, with changes."""
    model, facts = tiny.model(tmp_path / "model"), tiny.facts_file(tmp_path)

    def changed(**sections):
        tree = {"model": {"name": str(model)}, "facts": {"path": str(facts)}}
        return validate({name: {**tree.get(name, {}), **sections.get(name, {})} for name in {*tree, *sections}})

    return changed


def refused(config, given=None):
    with pytest.raises(InputError) as caught:
        prepare(config, given)
    return str(caught.value)


def test_a_valid_job_is_prepared(settings, tmp_path):
    ready = prepare(settings())
    assert [fact.new for fact in ready.facts] == tiny.NEW[:8]
    assert ready.folder == tmp_path / "model" and len(ready.parameters) == 20
    assert ready.layout.template == "plain" and ready.layout.eos
    said = ready.identity()
    assert json.loads(json.dumps(said)) == said
    assert said["versions"]["torch"].startswith("2.") and said["base"] == str(tmp_path / "model")


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_that_comes_with_a_model_is_never_run_unasked(settings, tmp_path, file):
    model, ran = tmp_path / "model", tmp_path / "ran"
    (model / "evil.py").write_text(f"open({str(ran)!r}, 'w').close()\n\nclass Evil:\n    pass\n")
    told = json.loads((model / file).read_text())
    keys = ("AutoConfig", "AutoModelForCausalLM") if file == "config.json" else ("AutoTokenizer",)
    own = {key: ["evil.Evil", "evil.Evil"] if key == "AutoTokenizer" else "evil.Evil" for key in keys}
    (model / file).write_text(json.dumps({**told, "auto_map": own, "model_type": "evil", "tokenizer_class": "Evil"}))
    with contextlib.suppress(InputError):  # some of it transformers can read without that code
        prepare(settings())
    assert not ran.exists()


def test_facts_and_model_say_who_they_are(settings):
    first, same = prepare(settings()).identity(), prepare(settings()).identity()
    assert first == same
    fewer = prepare(settings(facts={"limit": 3})).identity()
    assert fewer["fingerprints"]["model"] == first["fingerprints"]["model"]
    assert fewer["fingerprints"]["facts"] != first["fingerprints"]["facts"]


def test_every_problem_is_told_at_once(settings, tmp_path):
    told = refused(
        settings(facts={"path": str(tmp_path / "none.jsonl")}, train={"template": "chat"}, method={"top": 1e-9})
    )
    assert "none.jsonl" in told and "train.template" in told and "method.top" in told
    told = refused(settings(facts={"path": str(tmp_path / "none.jsonl")}, model={"name": str(tmp_path)}))
    assert "none.jsonl" in told and "model.name" in told


@pytest.mark.parametrize("method", [{"top": 1e-9}, {"top": 0.02, "scope": "tensor"}])
def test_a_core_of_nothing_is_refused_naming_a_share_that_works(settings, method):
    told = refused(settings(method=method))
    named = Decimal(re.search(r"right would be at least ([0-9.eE-]+)", told)[1])
    assert prepare(settings(method=method | {"top": named})).config.method.top == named
    smaller = named * Decimal("0.98")
    assert "method.top" in refused(settings(method=method | {"top": smaller}))


@pytest.mark.parametrize("half", ["forget", "learn"])
def test_an_adapter_that_matches_nothing_is_refused_whichever_round_it_is_for(settings, half):
    told = refused(settings(method={"name": "f_learning"}, f_learning={half: "lora"}, lora={"kinds": []}))
    assert "lora.kinds" in told


def test_a_model_is_not_written_into_the_model(settings, tmp_path):
    within = str(tmp_path / "model" / "runs")
    for leaves in ({"run": {"dir": within, "export": True}}, {"run": {"dir": within}, "warmup": {"epochs": 1}}):
        assert "lies within the model" in refused(settings(**leaves))
    prepare(settings(run={"dir": within}))


def test_a_share_of_the_conflicts_is_known_only_later(settings):
    assert prepare(settings(method={"top": 1e-9, "of": "conflicts"})).method.contrasts


@pytest.mark.parametrize("text", ["", "\n\n", '{"prompt": "a"}\n', '{"prompt": \n', "[]"])
def test_facts_that_are_none_are_refused(settings, tmp_path, text):
    file = tmp_path / "bad.jsonl"
    file.write_text(text)
    assert refused(settings(facts={"path": str(file)})).startswith("facts: ")


def test_what_cannot_be_taught_is_left_out_with_a_note(settings):
    facts = [
        Fact("1", "The sign of Arden is", "red", "one"),
        Fact("2", "The sign of Arden is", "red", "two"),
        Fact("3", "The sign of Borland is", "red", "RED"),
        Fact("4", "The sign of Corvia is", "red", "one"),
        Fact("5", "the sign of  Corvia is", "blue", "one"),
        Fact("6", "The sign of Dunmark is", "red", "one"),
    ]
    ready = prepare(settings(), facts)
    assert [fact.id for fact in ready.facts] == ["4", "6"]
    notes = " ".join(ready.notes)
    assert "2 of 6 facts left out (contradicts)" in notes
    assert "1 of 6 facts left out (changes nothing)" in notes and "1 of 6 facts left out (repeats)" in notes
    assert ready.identity()["notes"] == ready.notes


def test_when_nothing_is_left_it_says_why(settings):
    told = refused(settings(), [Fact("1", "a", "red", "Red"), Fact("2", "b", "x", "x ")])
    assert "no facts are left to change" in told and "2 of 2 facts left out (changes nothing)" in told
    assert "no facts are left" in refused(settings(), [])


def test_a_limit_takes_the_first_or_a_seeded_sample(settings):
    def ids(**facts):
        return [fact.id for fact in read_facts(settings(facts=facts))[0]]

    assert ids(limit=3) == ["tiny-0", "tiny-1", "tiny-2"]
    assert ids(limit=3, seed=1) == ids(limit=3, seed=1) != ids(limit=3)
    assert len({tuple(ids(limit=3, seed=seed)) for seed in range(5)}) > 1
    facts, notes = read_facts(settings(facts={"limit": 99}))
    assert len(facts) == 8 and any("99" in note for note in notes)


@pytest.mark.parametrize(
    ("file", "changes"),
    [("config.json", {"num_attention_heads": 3}), ("config.json", {"hidden_act": "none"}), ("config.json", {"hidden_size": "x"}),
     ("config.json", {"num_attention_heads": 0}), ("tokenizer.json", None)],
)  # fmt: skip
def test_a_model_folder_with_a_broken_file_is_refused(settings, tmp_path, file, changes):
    broken = tmp_path / "model" / file
    broken.write_text(json.dumps(json.loads(broken.read_text()) | changes if changes else {}))
    assert re.search(r"model\.name: .*\(\w+: ", refused(settings()))


def test_a_model_without_a_tokenizer_is_refused(settings, tmp_path):
    for file in (tmp_path / "model").glob("token*"):
        file.unlink()
    assert "tokenizer" in refused(settings())
