"""The real model that comes out of its package, updated for real."""

from pathlib import Path

import pytest

from dft_cluster import update
from dft_cluster.facts.pairs import given
from dft_cluster.local import in_this_process
from dft_cluster.methods import asking
from dft_cluster.methods.prepare import prepare
from dft_cluster.methods.rephrasing import could_ask, rephrase
from dft_cluster.patch import fingerprint, verify
from dft_cluster.patch.apply import apply
from dft_cluster.ranks.rank import Source
from dft_cluster.runs.console import Console
from tests.integration import runs


def test_two_facts_into_the_embedded_model(embedded_model: Path, tmp_path: Path) -> None:
    result = update(
        "smollm2-135m",
        "embedded",
        run_dir=tmp_path,
        facts={"limit": 2},
        method={"top": 0.1, "rounds": 2},
        train={"lr": 4e-4, "epochs": 3, "batch": 2},
        converge={"reliability": 90},
        evaluate={"protocols": ["teacher_forced"]},
    )
    start, *rounds, end = result.metrics
    assert [line["core"]["k"] for line in rounds] == [134515008 // 10] * len(rounds)
    assert all(line["core"]["kept"] == line["core"]["k"] for line in rounds)
    assert rounds[-1]["loss"]["new"][-1] < rounds[0]["loss"]["new"][0]
    assert end["final"]["reliability"]["token"] > start["reliability"]["token"]
    kinds = {place["kind"] for place in rounds[0]["core"]["by_layer"]}
    assert kinds == {"mlp", "attention", "norm", "embedding"}
    # The patch is for exactly the base that config.json names, and gives what was measured.
    assert verify(result.patch, embedded_model).state == "base"
    assert apply(result.patch, embedded_model, tmp_path / "updated") != fingerprint(embedded_model)
    assert verify(result.patch, tmp_path / "updated").state == "patched"


@pytest.mark.usefixtures("embedded_model")
def test_its_own_rephrases_ask_for_the_subject_and_the_likeliest_come_first(tmp_path: Path) -> None:
    config = runs.config(Path("smollm2-135m"), Path("embedded"), tmp_path, facts={"limit": 3}, train={"rephrases": 2})
    prepared = prepare(config)
    layout, facts, pairs = prepared.layout, prepared.facts, given(prepared.facts)
    with in_this_process(prepared.seat(1), Source(config.model), Console(runs.silent)) as team:
        found = rephrase(config, layout, team, facts, pairs, 7)
        assert sum(map(len, found)) >= 3
        for fact, pair, lines in zip(facts, pairs, found, strict=True):
            assert len(lines) <= 2
            assert all(could_ask(line, fact, pair) for line in lines)
            answers = [layout.example(line, pair.old, eos=False) for line in lines]
            surprise = [one.nll for one in asking.forced(team, answers, 1, layout.pad)]
            assert surprise == pytest.approx(sorted(surprise), rel=1e-3)
