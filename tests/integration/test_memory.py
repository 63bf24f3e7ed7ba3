"""A rank's peak memory: plain DeepSpeed training of the same config, 8 bytes an element more, and 64 MiB."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dft_cluster.cluster.actors import ActorTeam
from dft_cluster.config import ModelSettings
from dft_cluster.config_file import validate
from dft_cluster.facts.layout import Example
from dft_cluster.methods.dft import Dft
from dft_cluster.methods.prepare import prepare
from dft_cluster.ranks.assemble import assemble
from dft_cluster.ranks.rank import Rank, Source
from dft_cluster.training.engine import Place
from tests import tiny
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
            "train": {"zero_stage": stage},
            "method": {"top": 0.05},
        }
    )
    prepared = prepare(config)
    weights = prepared.parameters
    elements = sum(p.numel for p in weights)
    assert 4 * elements > 150 << 20, "large enough to tell 64 MiB from what the method keeps"
    examples = [Example(tuple(range(i, i + 12)), 8, 12) for i in range(1, 9)]
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
    job = replace(prepared.job(source), old=examples, new=list(reversed(examples)))
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
