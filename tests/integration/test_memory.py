"""A rank's peak memory: plain DeepSpeed training of the same config, 8 bytes an element more, and 64 MiB; and no logits that
nobody asks for."""

import gc
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dft_cluster.cluster.actors import ActorTeam
from dft_cluster.config import ModelSettings
from dft_cluster.config_file import validate
from dft_cluster.facts.layout import Example
from dft_cluster.local import in_this_process
from dft_cluster.methods.dft import Dft
from dft_cluster.methods.prepare import prepare
from dft_cluster.ranks.assemble import assemble
from dft_cluster.ranks.rank import Rank, Source
from dft_cluster.runs.console import Console
from dft_cluster.training.engine import Place
from tests import tiny
from tests.integration import runs
from tests.integration.eyes import Eyes

pytestmark = pytest.mark.usefixtures("cluster")


def silent(_progress: Any) -> None:
    """Nobody looks on."""


@pytest.mark.parametrize("stage", [1, 3])
def test_the_delicate_step_costs_eight_bytes_an_element(tmp_path: Path, stage: int) -> None:
    model = tiny.model(tmp_path / "model", hidden=768, layers=8, tied=True)
    config = validate(
        {
            "model": {"name": str(model)},
            "facts": {"path": str(tiny.facts_file(tmp_path))},
            "train": {"zero_stage": stage, "epochs": 2},
            "method": {"top": 0.05},
        }
    )
    prepared = prepare(config)
    weights = prepared.parameters
    elements = sum(p.numel for p in weights)
    assert 4 * elements > 150 << 20, "large enough to tell 64 MiB from what the method keeps"
    examples, others = ([Example(tuple(range(i, i + 12)), 8, 12) for i in range(at, at + 4)] for at in (1, 40))
    source = Source(ModelSettings(name=str(model)))

    plain = ActorTeam([Eyes.crew(1)], 300, silent)
    address, port = plain.everyone.call(Rank.where)[0]
    place = Place(0, 1, address, port, "cpu", 1)
    plain.everyone.each(Rank.build, [(place, source, config, weights)])
    for number in range(2):
        plain.everyone.call(Rank.fine_tune, examples, 0, number, "plain")
    [baseline] = plain.everyone.call(Rank.peak_memory)
    plain.close()

    pair = ActorTeam([Eyes.crew(1), Eyes.crew(1)], 300, silent)
    assemble(pair, config, source, weights, device="cpu", threads=1)
    job = replace(prepared.job(source), old=examples, new=others)
    for number in (1, 2):
        Dft(config).round(pair, job, number)
        pair.new.each(Rank.write_part, [(str(tmp_path), f"part-{number}", True, False)])
    peaks = pair.everyone.call(Rank.peak_memory)
    pair.close()
    allowed = baseline + 8 * elements + (64 << 20)
    print(
        f"stage {stage}: {elements} elements, plain {baseline >> 20} MiB, ranks {[p >> 20 for p in peaks]} MiB, "
        f"allowed {allowed >> 20} MiB"
    )
    assert max(peaks) <= allowed


@pytest.mark.parametrize("train", [{}, {"zero_stage": 3}, {"adapter": "lora"}], ids=str)
def test_an_engine_s_head_sees_the_answers_alone(
    tiny_model: Path, tiny_facts: Path, tmp_path: Path, train: dict[str, Any]
) -> None:
    prepared = prepare(runs.config(tiny_model, tiny_facts, tmp_path, train={**train, "batch": 2})).seat(1)
    examples = [Example((5, 6, 7, 8, 9), 3, 5), Example((12, 13, 14, 15, 16, 17, 18, 19), 7, 8)]
    seen: list[tuple[int, ...]] = []

    def look(_head: Any, _given: Any, logits: Any) -> None:
        seen.append(tuple(logits.shape[:-1]))

    with in_this_process(prepared, Source(prepared.config.model), Console(silent)) as team:
        team.everyone._rank._engine.module.get_output_embeddings().register_forward_hook(look)
        team.everyone.call(Rank.fine_tune, examples, 0, 1, "new", 1)
        team.everyone.call(Rank.predict, [examples], 0)
    assert seen == [(1, 3), (1, 3)]


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_a_run_in_this_process_leaves_no_weights_behind(
    tiny_model: Path, tiny_facts: Path, tmp_path: Path, stage: int, adapter: str
) -> None:
    """One update after another, as a notebook or a comparison does them: the first one's model is not kept."""

    def held() -> set[int]:
        gc.collect()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some objects warn when they are asked what they are
            return {id(one) for one in gc.get_objects() if isinstance(one, torch.Tensor) and one.numel() > 16}

    before = held()
    runs.alone(runs.config(tiny_model, tiny_facts, tmp_path, train={"zero_stage": stage, "adapter": adapter}))
    assert held() <= before
