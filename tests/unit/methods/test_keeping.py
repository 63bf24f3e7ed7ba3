"""Which prompts a run may keep the answers of."""

import json
from pathlib import Path
from typing import Any

import pytest

from dft_cluster.config import Config
from dft_cluster.config_file import validate
from dft_cluster.errors import InputError
from dft_cluster.facts.fact import Fact, Probe
from dft_cluster.methods.keeping import prompts_to_keep

FACTS = [
    Fact(
        "1", "The capital of Oslia is", "A", "B", "Oslia",
        rephrases=("Which capital has the land?",), locality=(Probe("Two and two make", "four"),),
    )
]  # fmt: skip


def keeping(file: Path | None, count: int = 2) -> Config:
    train: dict[str, Any] = {"keep": count, "keep_prompts": file and str(file)}
    return validate({"train": train})


def test_no_probe_and_no_subject_of_the_facts_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    lines = [
        "two and  two make", "Which capital has the land?", "", "The king of oslia was",
        "Water is", "Water is", "Snow is", "Ice is",
    ]  # fmt: skip
    file.write_text("\n".join(lines))
    assert prompts_to_keep(keeping(file), FACTS) == ["Water is", "Snow is"]
    assert prompts_to_keep(keeping(file, 9), FACTS) == ["Water is", "Snow is", "Ice is"]


def test_a_subject_within_a_word_is_none(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("The famous dish of Spain is\nThe US is\nThe artist said")
    facts = [Fact(str(n), f"{subject} lies in", "A", "B", subject) for n, subject in enumerate(("US", "Art"))]
    assert prompts_to_keep(keeping(file), facts) == ["The famous dish of Spain is", "The artist said"]


def test_a_file_of_facts_gives_its_prompts(tmp_path: Path) -> None:
    file = tmp_path / "facts.jsonl"
    rows = [
        {"id": str(i), "subject": s, "prompt": f"{s} lies in", "target_old": "a", "target_new": "b"}
        for i, s in enumerate(("Oslia", "Bern"))
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert prompts_to_keep(keeping(file), FACTS) == ["Bern lies in"]


def test_without_a_file_or_a_number_nothing_is_read(tmp_path: Path) -> None:
    assert prompts_to_keep(keeping(None), FACTS) == prompts_to_keep(keeping(tmp_path / "none.txt", 0), FACTS) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "train.keep_prompts: .*No such file"),
        ("Two and two make\n", "train.keep_prompts: of 1 prompts in .* all are"),
    ],
)
def test_what_cannot_be_kept_is_refused(tmp_path: Path, text: str | None, said: str) -> None:
    file = tmp_path / "prompts.txt"
    if text is not None:
        file.write_text(text)
    with pytest.raises(InputError, match=said):
        prompts_to_keep(keeping(file), FACTS)
