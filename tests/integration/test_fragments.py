"""One view of θ over every ZeRO stage: fragments, working copies, memory."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from dft_cluster.cluster.actors import ActorTeam
from dft_cluster.config import ClusterSettings, ModelSettings, TrainSettings
from dft_cluster.models.structure import Parameter, parameters
from dft_cluster.patch import Folder
from dft_cluster.ranks.rank import Rank, Source
from dft_cluster.training.engine import Place
from tests import tiny
from tests.integration.eyes import Eyes

pytestmark = pytest.mark.usefixtures("cluster")


def silent(_progress: Any) -> None:
    """Nobody looks on."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Odd sizes, so that every stage has to pad."""
    return tiny.model(tmp_path_factory.mktemp("odd") / "model", hidden=40, layers=3, tied=False)


def build(team: ActorTeam, model: Path, weights: list[Parameter], **train: Any) -> None:
    group = team.everyone
    address, port = group.call(Rank.where)[0]
    places = [Place(rank, group.size, address, port, "cpu", 1) for rank in range(group.size)]
    settings = TrainSettings(**train)
    source = Source(ModelSettings(name=str(model)))
    group.each(Rank.build, [(place, source, settings, ClusterSettings(), weights) for place in places])


@pytest.mark.parametrize("world", [1, 2, 3])
def test_fragments_cover_every_element_once_and_say_the_same_in_every_stage(model: Path, world: int) -> None:
    """… and after an update the working copies are the cast masters on every rank, which a forward pass shows."""
    weights = parameters(model)
    files = Folder(model)
    start = torch.cat([files.flat(p.saved, 0, p.numel) for p in weights])
    offsets = dict(
        zip([p.index for p in weights], itertools.accumulate((p.numel for p in weights), initial=0), strict=False)
    )
    team = ActorTeam([Eyes.crew(world)], 120, silent)
    try:
        for stage, precision in itertools.product((1, 2, 3), ("bf16", "fp32")):
            build(team, model, weights, zero_stage=stage, precision=precision)
            whole = torch.full((start.numel(),), float("nan"))
            covered = torch.zeros(start.numel(), dtype=torch.int32)
            for shard in team.everyone.call(Eyes.shard):
                for parameter, at, values in shard:
                    place = slice(offsets[parameter] + at, offsets[parameter] + at + len(values))
                    whole[place] = torch.from_numpy(values)
                    covered[place] += 1
            assert torch.equal(covered, torch.ones_like(covered)), (stage, precision)
            assert torch.equal(whole, start), "masters start from the file's exact values"
            # Move every master by a known amount, as an applied core does, and push.
            team.everyone.call(Eyes.shift, 0.5)
            moved = [(start[offsets[p.index] : offsets[p.index] + p.numel] + 0.5).reshape(p.shape) for p in weights]
            expected = tiny.logits(model, dict(zip([p.name for p in weights], moved, strict=True)), precision)
            for rank, logits in enumerate(team.everyone.call(Eyes.logits, tiny.PROMPT_IDS)):
                assert torch.equal(torch.from_numpy(logits), expected), (stage, precision, rank)
    finally:
        team.close()
