"""Seconds of a round, from a few real steps of the real ranks."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from dft_cluster.evaluation.probes import Asked as Probe
from dft_cluster.evaluation.probes import batched, dealt
from dft_cluster.facts.layout import Example
from dft_cluster.methods.prepare import Prepared
from dft_cluster.ranks.rank import Rank
from dft_cluster.ranks.team import Team
from dft_cluster.training.batches import shuffled

STEPS = 4
BATCHES = 4


@dataclass(frozen=True)
class Seconds:
    """What a few steps and batches took, and what a round has of them."""

    step: float
    steps: int
    """Steps of a round, one after the other."""
    batch: float
    batches: int
    """Batches of probes of the busiest rank."""

    @property
    def training(self) -> float:
        return self.step * self.steps

    @property
    def evaluation(self) -> float:
        return self.batch * self.batches

    def text(self) -> str:
        return (
            f"{self.training + self.evaluation:.1f} s: training {self.training:.1f} s ({self.steps} steps of {self.step:.3f} s), "
            f"evaluation {self.evaluation:.1f} s ({self.batches} batches of {self.batch:.3f} s); exchange, choice and "
            "checkpoint come on top and were not timed"
        )


def calibrate(
    prepared: Prepared, team: Team, sides: Sequence[Sequence[Example]], probes: Sequence[Probe], steps: int
) -> Seconds:
    """`sides` are the training sets, of which the first step warms the ranks up and the next ones count; θ is changed by it."""
    train, pad = prepared.config.train, prepared.layout.pad
    groups = [team.old, team.new] if team.paired else [team.everyone]

    def tune(count: int, number: int) -> float:
        pending = []
        for group, examples in zip(groups, sides[-len(groups) :], strict=True):
            order = shuffled(len(examples), train.seed, 1, 0)[: count * train.batch]
            chosen = [examples[i] for i in order]
            pending.append(group.start(Rank.fine_tune, chosen, pad, number, "calibration", epochs=1))
        return max(one.seconds / len(one.losses) for waiting in pending for one in waiting.wait())

    tune(1, 0)
    step = tune(STEPS, 1)
    batches = batched(probes, prepared.config.evaluate.batch, lambda probe: len(probe.example.ids))
    laid = [[probes[p].example for p in batch] for batch in batches]
    few = laid[:: max(1, len(laid) // BATCHES)]
    shares = dealt(few, team.everyone.size)
    began = time.perf_counter()
    team.everyone.each(Rank.predict, [(share, pad) for share in shares])
    each = (time.perf_counter() - began) / max(1, len(shares[0]))
    return Seconds(step, steps, each, -(-len(laid) // team.everyone.size))
