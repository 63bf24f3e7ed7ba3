"""One view of θ over every ZeRO stage: fragments, working copies, memory."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from dft_cluster.cluster.actors import ActorTeam
from dft_cluster.config import Config, ModelSettings, TrainSettings
from dft_cluster.facts.layout import Example
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
    config = Config(train=TrainSettings(**train))
    source = Source(ModelSettings(name=str(model)))
    group.each(Rank.build, [(place, source, config, weights) for place in places])


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


@pytest.mark.parametrize(("family", "world"), [("llama", 1), ("llama", 2), ("gpt2", 2)])
def test_an_adapter_leaves_the_weights_alone_and_comes_out_merged(
    model: Path, tmp_path: Path, family: str, world: int
) -> None:
    """Of every stage: the shares of the adapted weights cover them once, and what an adapter learns beside them is what
    merging puts into them; so it is where weights are stored the other way round (GPT-2)."""
    if family != "llama":
        model = tiny.architecture(family, tmp_path / "model")
    weights = [p for p in parameters(model) if p.kind in ("mlp", "attention") and len(p.shape) == 2]
    files = Folder(model)
    start = {p.index: files.flat(p.saved, 0, p.numel) for p in weights}
    examples = [Example(tuple(range(i, i + 12)), 8, 12) for i in range(1, 9)]
    team = ActorTeam([Eyes.crew(world)], 120, silent)
    learnt: dict[int, torch.Tensor] = {}
    try:
        for stage in (1, 2, 3):
            build(team, model, weights, zero_stage=stage, precision="fp32", adapter="lora", lr=1e-2)
            plain = tiny.logits(
                model, {p.name: files.flat(p.saved, 0, p.numel).reshape(p.shape) for p in parameters(model)}, "fp32"
            )
            assert torch.equal(torch.from_numpy(team.everyone.call(Eyes.logits, tiny.PROMPT_IDS)[0]), plain)
            team.everyone.call(Eyes.fine_tune, examples, 0, 1, "new")
            assert covered(team, weights).keys() == start.keys()
            for index, values in covered(team, weights).items():
                assert torch.equal(values, start[index]), "the weights stand still"
            beside = torch.from_numpy(team.everyone.call(Eyes.logits, tiny.PROMPT_IDS)[0])
            team.everyone.call(Eyes.round_to, {p.index: torch.float32 for p in parameters(model)})
            for logits in team.everyone.call(Eyes.logits, tiny.PROMPT_IDS):
                torch.testing.assert_close(torch.from_numpy(logits), beside, rtol=1e-4, atol=1e-4)
            assert (beside - plain).abs().max() > 0.1
            for index, values in covered(team, weights).items():
                torch.testing.assert_close(values, learnt.setdefault(index, values), rtol=0, atol=2e-4)
    finally:
        team.close()


def covered(team: ActorTeam, weights: list[Parameter]) -> dict[int, torch.Tensor]:
    """The masters of all ranks put together; every element is in exactly one of them."""
    found = {p.index: torch.full((p.numel,), float("nan")) for p in weights}
    for shard in team.everyone.call(Eyes.shard):
        for parameter, at, values in shard:
            assert found[parameter][at : at + len(values)].isnan().all()
            found[parameter][at : at + len(values)] = torch.from_numpy(values)
    assert not any(values.isnan().any() for values in found.values())
    return found
