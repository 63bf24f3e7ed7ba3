"""What does not fit into the model's window is told before a rank is started."""

from dataclasses import replace
from pathlib import Path

import pytest

from dft_cluster.errors import InputError
from dft_cluster.facts.fact import Fact, Probe
from dft_cluster.facts.layout import Layout
from dft_cluster.methods.prepare import prepare
from dft_cluster.methods.window import refuse_too_long
from tests import tiny
from tests.integration import runs

LONG = " ".join(["Arden"] * 30)
FACT = Fact("7", "The sign of Arden is", "red", "seven")


@pytest.mark.parametrize(
    "fact",
    [
        replace(FACT, prompt=LONG),
        replace(FACT, rephrases=(LONG,)),
        replace(FACT, locality=(Probe(LONG, "red"),)),
        replace(FACT, portability=(Probe(LONG, "red"),)),
        replace(FACT, new=LONG),
    ],
)
def test_a_prompt_with_its_answer_must_fit(tiny_model: Path, tiny_facts: Path, tmp_path: Path, fact: Fact) -> None:
    config = runs.config(tiny_model, tiny_facts, tmp_path, evaluate={"protocols": ["teacher_forced"]})
    layout = Layout(tiny.tokenizer(), eos=True)
    with pytest.raises(InputError, match=r"1 prompt with .* window of 24 tokens; the first is fact 7's"):
        refuse_too_long(config, [FACT, fact], layout, 24)
    refuse_too_long(config, [FACT, fact], layout, None)


def test_what_is_put_before_and_said_behind_counts(tiny_model: Path, tiny_facts: Path, tmp_path: Path) -> None:
    layout = Layout(tiny.tokenizer(), eos=True)
    size = len(layout.example(FACT.prompt, FACT.new).ids)

    def most(**sections: object) -> int:
        config = runs.config(tiny_model, tiny_facts, tmp_path, **sections)
        for room in range(64):
            try:
                refuse_too_long(config, [FACT], layout, size + room)
            except InputError:
                continue
            return room
        raise AssertionError

    forced = {"protocols": ["teacher_forced"]}
    assert most(evaluate=forced) == 0
    assert most(evaluate=forced, train={"contexts": 1}) == 12
    assert most(evaluate={"protocols": ["teacher_forced", "generated"], "max_new_tokens": 5}) == 5


def test_the_model_says_what_its_window_is(tiny_model: Path, tiny_facts: Path, tmp_path: Path) -> None:
    config = runs.config(tiny_model, tiny_facts, tmp_path)
    with pytest.raises(InputError, match="are longer than the model's window"):
        prepare(config, [replace(FACT, prompt=" ".join(["Arden"] * 5000))])
