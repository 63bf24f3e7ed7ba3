"""Covariances: from which text, kept for whom, solvable from how little; and how their progress is told."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import processors
from transformers import AutoModelForCausalLM

from dft_cluster.editing.covariance import Covariance, Key, cached, circumstances, keep, text_for, weights_fingerprint
from dft_cluster.errors import InputError
from dft_cluster.facts.layout import Layout
from dft_cluster.methods import editing
from tests import tiny
from tests.unit.editing.test_values import requests


@pytest.fixture(scope="module")
def layout() -> Layout:
    return Layout(tiny.tokenizer())


def test_a_covariance_is_found_again_only_for_the_same_weights_and_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DFT_CACHE", str(tmp_path))
    known = Covariance(torch.eye(3) * 2, 7, 1.5)
    key = Key("model", "text", 5)
    notes: list[str] = []
    assert cached(key, "layer", 3, notes.append) is None
    keep(key, "layer", known)
    again = cached(key, "layer", 3, notes.append)
    assert again is not None and torch.equal(again.mean, known.mean) and (again.tokens, again.seconds) == (7, 1.5)
    for other in (Key("other", "text", 5), Key("model", "other", 5), Key("model", "text", 6)):
        assert cached(other, "layer", 3, notes.append) is None
    assert cached(key, "other layer", 3, notes.append) is None and not notes
    key.file("layer").write_bytes(b"broken")
    assert cached(key, "layer", 3, notes.append) is None
    assert "cannot be read" in notes[0]


@pytest.mark.parametrize("other", ["ranks", "device", "threads", "rope"])
def test_what_bits_depend_on_names_a_covariance(tiny_model: Path, other: str) -> None:
    """The same weights in other hands add up to other last bits, and with other settings to another covariance."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    before = circumstances(model, 1, torch.device("cpu"))
    moved = AutoModelForCausalLM.from_pretrained(tiny_model)
    moved.config._name_or_path = "/elsewhere"
    assert circumstances(moved, 1, torch.device("cpu")) == before
    threads = torch.get_num_threads()
    if other == "threads":
        torch.set_num_threads(threads + 1)
    if other == "rope":
        model.config.rope_parameters = {"rope_type": "default", "rope_theta": 123.0}
    try:
        ranks, device = (2 if other == "ranks" else 1), torch.device("meta" if other == "device" else "cpu")
        assert circumstances(model, ranks, device) != before
    finally:
        torch.set_num_threads(threads)


def test_the_fingerprint_sees_a_single_weight() -> None:
    model = torch.nn.Linear(3, 3)
    before = weights_fingerprint(model)
    assert before == weights_fingerprint(model)
    with torch.no_grad():
        model.bias[1] += 1e-3
    assert before != weights_fingerprint(model)


def test_too_little_text_is_solvable_and_much_text_is_left_alone() -> None:
    keys = torch.randn(4, 32)
    little = Covariance(keys.T @ keys / 4, 4, 0.0).solid()
    assert float(torch.linalg.eigvalsh(little)[0]) > 0
    assert float(little.trace()) == pytest.approx(float((keys.T @ keys / 4).trace()))
    full = torch.diag(torch.arange(1.0, 33.0))
    assert torch.allclose(Covariance(full, 10**8, 0.0).solid(), full.double(), rtol=1e-4)
    assert torch.allclose(Covariance(torch.eye(32), 3, 0.0).solid(), torch.eye(32, dtype=torch.float64))


def test_a_short_text_says_more_when_it_is_shrunk() -> None:
    """Nearer to the true second moment than what was counted, by less and less the longer the text."""
    torch.manual_seed(0)
    true = torch.diag(torch.linspace(0.1, 3, 32).double())
    gains = []
    for tokens in (8, 64, 4096):
        keys = torch.randn(tokens, 32, dtype=torch.float64) @ true.sqrt()
        counted = keys.T @ keys / tokens
        shrunk = Covariance(counted, tokens, 0.0).solid()
        gains.append(float((counted - true).norm() / (shrunk - true).norm()))
    assert gains[0] > gains[1] > gains[2] > 0.99


def test_texts_come_from_facts_or_a_file(layout: Layout, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("One part\nof two lines.\n\n\n\nAnother part.\n\nA third.")
    text = text_for(str(file), "train", 2, [], layout)
    assert [layout.text(one.ids) for one in text.passages] == ["One part\nof two lines.", "Another part."]
    assert text.tokens == sum(len(one.ids) for one in text.passages) and str(file) in text.source
    assert text.fingerprint != text_for(str(file), "train", 1, [], layout).fingerprint
    rows = [row for one in requests(layout) for row in one.rows]
    own = text_for("facts", "train", 4, rows, layout)
    assert [one.ids for one in own.passages] == [row.ids[: row.start] for row in rows[:4]]
    assert own.tokens == sum(row.start - 1 for row in rows[:4])
    (tmp_path / "windows.txt").write_bytes(b"First.\r\n\r\nSecond\r\none.\r\n \r\n\r\nThird.\r\n")
    parted = text_for(str(tmp_path / "windows.txt"), "train", 5, [], layout)
    assert [layout.text(one.ids).split() for one in parted.passages] == [["First."], ["Second", "one."], ["Third."]]
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(InputError, match=r"editing\.covariance: .*the file is empty"):
        text_for(str(tmp_path / "empty.txt"), "train", 2, [], layout)
    with pytest.raises(InputError, match="no file"):
        text_for(str(tmp_path / "absent.txt"), "train", 2, [], layout)


def test_a_long_text_is_cut_and_none_of_it_is_lost(layout: Layout, tmp_path: Path) -> None:
    """A file without an empty line is one text; each piece begins as the tokenizer begins every text."""
    words = tiny.tokenizer()
    words.add_special_tokens({"bos_token": "<bos>"})
    words.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", words.bos_token_id)]
    )
    file, said = tmp_path / "long.txt", "\n".join(f"Line {number} of many." for number in range(300))
    file.write_text(f"Short.\n\n{said}\n\nLast.")
    for begins in (Layout(words), layout):
        begin, whole = begins.prompt(""), begins.prompt(said)
        short, *pieces, last = (one.ids for one in text_for(str(file), "train", 100, [], begins).passages)
        assert (short, last) == (begins.prompt("Short."), begins.prompt("Last.")), "as they are"
        assert [len(ids) for ids in pieces[:-1]] == [512] * (len(pieces) - 1) and 0 < len(pieces[-1]) <= 512
        assert all(ids[: len(begin)] == begin for ids in pieces) and len(pieces) > 2
        assert (*begin, *(token for ids in pieces for token in ids[len(begin) :])) == whole
        assert [one.ids for one in text_for(str(file), "train", 2, [], begins).passages] == [short, whole[:512]]


def test_texts_come_from_a_data_set_of_the_hub(layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of that name below the working directory stands for the hub: the library reads it the same way."""
    monkeypatch.chdir(tmp_path)
    for name, rows in {
        "owner/texts": [{"text": text} for text in ("", "First.", " ", "Second one.", "Third.")],
        "owner/other": [{"words": "First."}],
    }.items():
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = text_for("owner/texts", "train", 2, [], layout)
    assert [layout.text(one.ids) for one in text.passages] == ["First.", "Second one."], "empty rows do not count"
    assert text.source == "2 texts of owner/texts"
    with pytest.raises(InputError, match=r"'owner/other' has no column named text"):
        text_for("owner/other", "train", 2, [], layout)
    for name, split in (("owner/texts", "no-such-split"), ("owner/absent", "train")):
        with pytest.raises(InputError, match=rf"'{name}' is no file here, and no data set .*\(split '{split}'\)"):
            text_for(name, split, 2, [], layout)


def test_progress_is_told_now_and_then_with_the_time_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(editing.time, "perf_counter", lambda: now[0])
    said: list[str] = []
    eta = editing.Eta(said.append, "covariance of layer 3", 40)
    for seconds, done in ((4, 4), (8, 4), (12, 2), (15, 10), (30, 20)):
        now[0] = seconds
        eta.done(done)
    assert said == ["covariance of layer 3: 10 of 40, 36 s left", "covariance of layer 3: 40 of 40, 0 s left"]
