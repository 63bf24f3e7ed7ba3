import json

import pytest

from dft_cluster.config_file import validate
from dft_cluster.errors import InputError
from dft_cluster.runs.checkpoints import Checkpoints
from dft_cluster.runs.record import Record

IDENTITY = {
    "versions": {"torch": "2"},
    "fingerprints": {"model": "m", "facts": "f"},
    "base": "/models/a",
    "notes": ["a note"],
}


@pytest.fixture
def opened(storage):
    def opens(identity=IDENTITY, **sections):
        sections = {"run": {"name": "one", "dir": "/runs"}} | sections
        record = Record(validate(sections))
        record.storage, record.checkpoints = storage, Checkpoints(storage)
        record.look(identity)
        record.begin()
        return record

    return opens


def test_a_records_place_is_its_name_within_the_folder(tmp_path):
    record = Record(validate({"run": {"dir": str(tmp_path), "name": "mine"}}))
    record.look(IDENTITY)
    assert not (tmp_path / "mine").exists(), "looking writes nothing"
    record.begin()
    assert json.loads((tmp_path / "mine" / "config.json").read_text())["name"] == "mine"


def test_a_run_is_taken_up_as_it_was_left(opened):
    first = opened(train={"lr": 1e-3})
    first.add({"round": 0, "reliability": {"exact": 1.5}})
    first.add({"round": 1, "text": "λ \u2028 é"})
    again = opened(train={"lr": 1e-3})
    assert again.lines == first.lines == again.rounds
    assert again.identity == first.identity and again.identity["config"]["train"]["lr"] == 1e-3
    assert again.result is None
    again.add({"stop_reason": "done", "rounds": 1})
    last = opened(train={"lr": 1e-3})
    assert last.result == {"stop_reason": "done", "rounds": 1} and len(last.rounds) == 2


def test_what_another_driver_did_meanwhile_counts_and_own_notes_stay(opened):
    first, second = opened(), opened()
    first.update_identity(base="/warmed")
    first.add({"round": 0})
    second.identity = second.identity | {"notes": ["a note", "of its own"]}
    second.look_again()
    assert second.rounds == [{"round": 0}]
    assert (second.identity["base"], second.identity["notes"]) == ("/warmed", ["a note", "of its own"])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"train": {"lr": 1e-3}}, "train.lr: 5e-05 → 0.001"),
        ({"method": {"top": 0.29}}, "method.top: '0.05' → '0.29'"),
        ({"converge": {"reliability": "off"}}, "converge.reliability: 95.0 → 'off'"),
        ({"facts": {"limit": 3}}, "facts.limit: None → 3"),
        ({"identity": IDENTITY | {"fingerprints": {"model": "m", "facts": "g"}}}, "facts: f → g"),
        ({"identity": IDENTITY | {"fingerprints": {"model": "n", "facts": "f"}}}, "model: m → n"),
    ],
)
def test_another_run_is_refused_with_the_difference(opened, storage, change, told):
    opened()
    before = storage.read("config.json")
    with pytest.raises(InputError, match="holds a run of another config") as caught:
        opened(**change)
    assert told in str(caught.value) and str(caught.value).count("→") == 1
    assert storage.read("config.json") == before


def test_a_key_that_there_was_not_yet_had_its_default(opened, storage):
    opened()
    kept = storage.read_json("config.json")
    del kept["config"]["dft"]["by"]
    storage.write_json("config.json", kept)
    assert opened().identity["notes"] == ["a note"]
    with pytest.raises(InputError, match=r"dft\.by: 'difference' → 'new'"):
        opened(dft={"by": "new"})


def test_every_difference_is_told_at_once(opened):
    opened()
    with pytest.raises(InputError) as caught:
        opened(train={"lr": 1e-3, "epochs": 1}, identity=IDENTITY | {"fingerprints": {"model": "n", "facts": "f"}})
    assert str(caught.value).count("→") == 3


@pytest.mark.parametrize(
    "change",
    [{"cluster": {"address": "local"}}, {"track": {"wandb": "off", "tags": ["x"]}}, {"cluster": {"groups": 1}},
     {"run": {"name": "one", "dir": "/elsewhere", "export": True}}, {"cluster": {"timeout": 5}}],
)  # fmt: skip
def test_what_does_not_say_what_is_computed_may_change(opened, change):
    opened()
    assert opened(**change).identity["notes"] == ["a note"]


@pytest.mark.parametrize(
    ("change", "of"),
    [
        ({"facts": {"path": "/elsewhere/facts.jsonl", "format": "common"}}, "facts"),
        ({"facts": {"probes": "/elsewhere/probes.jsonl"}}, "facts"),
        ({"model": {"name": "/elsewhere/model"}}, "model"),
    ],
)
def test_what_has_been_moved_is_known_by_its_fingerprint(opened, change, of):
    opened()
    assert opened(**change).identity["notes"] == ["a note"]
    unknown = {name: value for name, value in IDENTITY["fingerprints"].items() if name != of}
    with pytest.raises(InputError, match="→ '/elsewhere"):
        opened(**change, identity=IDENTITY | {"fingerprints": unknown})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"cluster": {"ranks_per_group": 2}}, "cluster.ranks_per_group 1 → 2"),
        ({"cluster": {"threads": 2}}, "cluster.threads None → 2"),
        ({"cluster": {"gpus_per_rank": 1}}, "cluster.gpus_per_rank None → 1"),
        ({"identity": IDENTITY | {"versions": {"torch": "3"}}}, "torch 2 → 3"),
    ],
)
def test_what_may_change_bits_is_noted_once(opened, storage, change, told):
    opened()
    for _ in range(2):
        notes = opened(**change).identity["notes"]
        assert notes[0] == "a note" and told in notes[1] and "bits may differ" in notes[1] and len(notes) == 2
    assert storage.read_json("config.json")["notes"] == notes


def test_what_a_cluster_gave_is_what_it_is_compared_with(opened):
    given = IDENTITY | {"threads": 2}
    opened(identity=given)
    assert opened(identity=given, cluster={"threads": 2}).identity["notes"] == ["a note"]
    assert "cluster.threads 2 → 3" in opened(identity=given, cluster={"threads": 3}).identity["notes"][1]


@pytest.mark.parametrize("name", ["lora", "ft_c", "f_learning", "interpolate", "memit"])
def test_methods_of_one_group_train_on_every_rank(opened, name):
    method = {"method": {"name": name}} | ({"train": {"adapter": "lora"}} if name == "lora" else {})
    opened(**method)
    assert "cluster.groups 2 → 1" in opened(**method, cluster={"groups": 1}).identity["notes"][1]


def test_plain_fine_tuning_trains_on_every_rank(opened):
    full = {"method": {"name": "full"}}
    opened(**full)
    assert "cluster.groups 2 → 1" in opened(**full, cluster={"groups": 1}).identity["notes"][1]


def test_never_refuses_a_folder_with_a_run(opened, storage):
    never = {"run": {"name": "one", "dir": "/runs", "resume": "never"}}
    opened(**never)
    with pytest.raises(InputError, match=r"run\.resume is never"):
        opened(**never)


@pytest.mark.parametrize("rest", [b'{"round": 2, "lo', b'{"round": 2, "x": "\xc3', b"\x00\x00", b"17", b"null"])
def test_a_line_cut_short_by_a_crash_is_none(opened, storage, rest):
    first = opened()
    first.add({"round": 0})
    first.add({"round": 1})
    storage.write("metrics.jsonl", storage.read("metrics.jsonl") + rest)
    again = opened()
    assert [line["round"] for line in again.rounds] == [0, 1]
    again.add({"round": 2})
    assert [line["round"] for line in opened().rounds] == [0, 1, 2]


def test_looking_writes_nothing(opened, storage):
    opened().add({"round": 0})
    storage.write("metrics.jsonl", storage.read("metrics.jsonl") + b'{"rou')
    before = {name: storage.read(name) for name in ("config.json", "metrics.jsonl")}
    record = Record(validate({"run": {"name": "one", "dir": "/runs"}, "cluster": {"threads": 3}}))
    record.storage = storage
    record.look(IDENTITY)
    assert record.lines == [{"round": 0}] and len(record.identity["notes"]) == 2
    assert {name: storage.read(name) for name in before} == before


def test_rounds_that_are_done_again_are_forgotten(opened):
    record = opened()
    for number in range(4):
        record.add({"round": number})
    record.add({"stop_reason": "done", "rounds": 3})
    record.keep_until(1)
    assert record.lines == [{"round": 0}, {"round": 1}] == opened().lines
    record.keep_until(-1)
    assert record.lines == [] == opened().lines


def test_what_is_no_number_is_null(opened, storage):
    opened().add({"round": 0, "loss": {"new": [float("nan"), 1.0]}, "perplexity": float("inf")})
    (line,) = storage.read("metrics.jsonl").decode().splitlines()
    assert json.loads(line, parse_constant=pytest.fail) == {
        "round": 0,
        "loss": {"new": [None, 1.0]},
        "perplexity": None,
    }


def test_what_is_learnt_of_a_run_stays(opened, storage):
    record = opened()
    record.update_identity(base="/runs/one/base")
    record.note("later")
    record.note("later")
    assert opened().identity["base"] == "/runs/one/base"
    assert storage.read_json("config.json")["notes"] == ["a note", "later"]
