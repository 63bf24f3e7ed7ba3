import pytest
import torch

from dft_cluster.runs.checkpoints import Checkpoints
from dft_cluster.runs.parts import Part, Stored, write


def rounds(storage, *alone, ranks=2):
    """Finished rounds: round n sets element n of 10 to n (or, alone, all of them to −n)."""
    made = Checkpoints(storage)
    for number, whole in enumerate(alone, 1):
        folder, parts = made.begin(number), []
        for rank in range(ranks):
            start, size = rank * 5, 5
            values, mark = (
                torch.full((size,), float(-number if whole else number)),
                torch.zeros(size, dtype=torch.int32),
            )
            mark[torch.arange(start, start + size) == number] = 1
            name = f"{folder}/rank-{rank:05d}.safetensors"
            with storage.writer(name) as stream:
                parts.append(write(stream, name, [Stored(0, start, values, None if whole else mark)]))
        made.commit(number, parts, alone=whole, outcome={"loss": {"new": [0.5]}})
    return made


def theta(storage, number, scratch):
    values = torch.zeros(10)
    for names in Checkpoints(storage).chain(number):
        for name in names:
            Part(storage.fetch(name, scratch)).overlay(0, 0, values)
    return values.tolist()


def numbers(storage):
    made = Checkpoints(storage)
    return [one.number for one in made.finished()], made.notes


def test_no_round_is_finished_before_the_first(storage):
    assert numbers(storage) == ([], [])
    storage.make("checkpoints")
    assert numbers(storage) == ([], [])


def test_finished_rounds_in_their_order(storage):
    rounds(storage, False, True, False)
    finished = Checkpoints(storage).finished()
    assert [(one.number, one.alone, len(one.parts), one.outcome) for one in finished] == [
        (1, False, 2, {"loss": {"new": [0.5]}}), (2, True, 2, {"loss": {"new": [0.5]}}), (3, False, 2, {"loss": {"new": [0.5]}}),
    ]  # fmt: skip


def test_theta_is_a_chain_of_rounds_back_to_one_that_stands_alone(storage, tmp_path):
    rounds(storage, False, False, True, False)
    assert Checkpoints(storage).chain(0) == []
    assert theta(storage, 1, tmp_path) == [0, 1, 0, 0, 0, 0, 0, 0, 0, 0]
    assert theta(storage, 2, tmp_path) == [0, 1, 2, 0, 0, 0, 0, 0, 0, 0]
    assert theta(storage, 3, tmp_path) == [-3] * 10
    assert theta(storage, 4, tmp_path) == [-3, -3, -3, -3, 4, -3, -3, -3, -3, -3]
    assert [len(names) for names in Checkpoints(storage).chain(4)] == [2, 2]


def broken(storage, how):
    manifest, part = "checkpoints/round-0002/manifest.json", "checkpoints/round-0002/rank-00001.safetensors"
    content = storage.read(part)
    match how:
        case "no manifest":
            storage.system.delete_file(storage.path(manifest))
        case "half a manifest":
            storage.write(manifest, storage.read(manifest)[:40])
        case "garbage":
            storage.write(manifest, b"\xff\x00 garbage")
        case "a list":
            storage.write(manifest, b"[1, 2]")
        case "null":
            storage.write(manifest, b"null")
        case "another form":
            storage.write_json(manifest, {"round": 2, "parts": [{"name": part}], "alone": False})
        case "no outcome":
            storage.write_json(
                manifest, {k: v for k, v in storage.read_json(manifest).items() if k in ("round", "parts")}
            )
        case "no parts":
            storage.write_json(manifest, storage.read_json(manifest) | {"parts": []})
        case "a part elsewhere":
            told = storage.read_json(manifest)
            told["parts"][0]["name"] = "checkpoints/round-0002/../../../stolen.safetensors"
            storage.write_json(manifest, told)
        case "another round's":
            storage.write(manifest, storage.read("checkpoints/round-0001/manifest.json"))
        case "cut short":
            storage.write(part, content[:-3])
        case "longer":
            storage.write(part, content + b"\0")
        case "empty":
            storage.write(part, b"")
        case "part missing":
            storage.system.delete_file(storage.path(part))
        case "a flipped bit":
            storage.write(part, content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
        case "a flipped bit in the header":
            storage.write(part, content[:20] + bytes([content[20] ^ 1]) + content[21:])


@pytest.mark.parametrize(
    "how",
    ["no manifest", "half a manifest", "garbage", "a list", "null", "another form", "no outcome", "no parts",
     "a part elsewhere", "another round's",
     "cut short", "longer", "empty", "part missing", "a flipped bit", "a flipped bit in the header"],
)  # fmt: skip
def test_a_damaged_round_is_left_aside_and_said_so(storage, tmp_path, how):
    rounds(storage, False, False, False)
    broken(storage, how)
    made = Checkpoints(storage)
    assert [one.number for one in made.finished()] == [1]
    (note,) = made.notes
    assert "checkpoint of round 2 is left aside" in note and "round 1 is used" in note
    made.finished()
    assert made.notes == [note]
    whole = storage.read("checkpoints/round-0003/rank-00000.safetensors")
    kept = made.set_aside(1)
    assert "checkpoints/aside-round-0003-1" in kept
    assert storage.read("checkpoints/aside-round-0003-1/rank-00000.safetensors") == whole
    assert numbers(storage) == ([1], [])
    assert theta(storage, 1, tmp_path)[1] == 1


def test_a_gap_ends_what_counts(storage):
    rounds(storage, False, False, False)
    storage.remove("checkpoints/round-0002")
    assert numbers(storage)[0] == [1]


def test_a_round_begun_anew_forgets_what_was_there(storage):
    made = rounds(storage, False, False)
    made.begin(2)
    assert numbers(storage)[0] == [1]
    assert storage.size("checkpoints/round-0002/rank-00000.safetensors") is None


def test_other_folders_are_left_alone(storage):
    made = rounds(storage, False)
    storage.make("checkpoints/warm-up")
    assert made.set_aside(0) == ["checkpoints/aside-round-0001-1"]
    made.begin(1)
    assert made.set_aside(0) == [], "what was never finished is not kept"
    assert storage.folders("checkpoints") == ["aside-round-0001-1", "warm-up"]


def test_what_was_set_aside_before_stays_when_more_is(storage):
    made = rounds(storage, False)
    first = storage.read("checkpoints/round-0001/manifest.json")
    assert made.set_aside(0) == ["checkpoints/aside-round-0001-1"]
    rounds(storage, False)
    assert made.set_aside(0) == ["checkpoints/aside-round-0001-2"]
    assert storage.read("checkpoints/aside-round-0001-1/manifest.json") == first
    storage.remove("checkpoints/aside-round-0001-1")
    rounds(storage, False)
    assert made.set_aside(0) == ["checkpoints/aside-round-0001-3"]


def test_more_rounds_than_the_names_have_digits_for(storage):
    made = Checkpoints(storage)
    assert made.begin(12345) == "checkpoints/round-12345"
    assert made.set_aside(12344) == []
    assert storage.folders("checkpoints") == []
