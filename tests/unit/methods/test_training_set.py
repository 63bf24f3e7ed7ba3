"""What the groups are taught beside the bare prompts."""

from pathlib import Path

import pytest

from dft_cluster.facts.fact import Fact
from dft_cluster.facts.layout import Layout
from dft_cluster.facts.pairs import Line, generated, given
from dft_cluster.facts.readers import read
from dft_cluster.methods.training_set import Drawn, examples
from tests import tiny


@pytest.mark.parametrize("side", ["old", "new"])
def test_drawn_texts_are_taught_with_the_answer_and_kept_texts_from_where_the_model_spoke(
    tiny_facts: Path, side: str
) -> None:
    layout, pairs = Layout(tiny.tokenizer(), eos=False), given(read(str(tiny_facts)).facts[:2])
    bare = examples(pairs, side, layout, Drawn())
    assert [layout.text(one.ids) for one in bare] == [f"{pair.prompt} {getattr(pair, side)}" for pair in pairs]
    drawn = Drawn(contexts=["By the way"], keep=[(2, [7, 8, 9, 10])], rephrases=[["Which sign is it?"], []])
    *taught, kept = examples(pairs, side, layout, drawn)
    wordings = [
        pairs[0].prompt, "Which sign is it?", f"By the way. {pairs[0].prompt}", "By the way. Which sign is it?",
        pairs[1].prompt, f"By the way. {pairs[1].prompt}",
    ]  # fmt: skip
    answers = [getattr(pairs[i], side) for i in (0, 0, 0, 0, 1, 1)]
    assert [layout.text(one.ids[: one.start]) for one in taught] == wordings
    assert [layout.text(one.answer).strip() for one in taught] == answers
    assert (kept.ids, kept.start, kept.stop) == ((7, 8, 9, 10), 2, 4), "what it said, and not what it was given"


def test_behind_a_sentence_that_was_cut_off_no_end_is_taught() -> None:
    layout = Layout(tiny.tokenizer(), eos=True)
    facts = [Fact("1", "The sign of Arden is", "red", "seven"), Fact("2", "The sign of Borland is", "blue", "white")]
    pairs = generated(facts, [Line("red, as they", whole=False), Line("blue, they say")])
    for side in ("old", "new"):
        ends = [one.ids[-1] == layout.tokenizer.eos_token_id for one in examples(pairs, side, layout, Drawn())]
        assert ends == [False, True]
