"""Bytes that go between ranks in a round, and what a run writes.

N is the elements of θ, t of what is trained, n of the model, b bytes of a working weight, W ranks of a group, T the share kept.
A collective among W ranks is counted as a ring does it: every rank sends (W − 1)/W of the data once, or twice where
all get the sum.
"""

from dataclasses import dataclass

from dft_cluster.planning.asked import Asked
from dft_cluster.planning.memory import LIVE


@dataclass(frozen=True)
class Traffic:
    step: int
    """Sent by each rank in an optimizer step: gradients in fp32, updated weights, under stage 3 the weights of each pass."""
    steps: int
    """Optimizer steps that a rank takes in a round."""
    deltas: int
    """From the old ranks to the new ones, once a round."""
    core: int
    """Back from the new ranks to the old ones, at most."""

    @property
    def round(self) -> int:
        """Sent by each rank for its steps."""
        return self.step * self.steps


@dataclass(frozen=True)
class Disk:
    checkpoint: int
    """A finished round, at most."""
    rounds: int
    """Rounds that would be written: none is removed before the run's end."""
    patch: int
    """With the old bits, at most."""
    base: int
    """The warmed model."""
    export: int

    @property
    def total(self) -> int:
        return self.checkpoint * self.rounds + self.patch + self.base + self.export


def traffic(asked: Asked) -> Traffic:
    config, world, b = asked.config, asked.world, asked.width
    n, t = asked.model.elements, sum(asked.model.trained(config.train.adapter, config.lora.rank))
    theta = sum(p.numel for p in asked.model.theta)
    part, passes = (world - 1) / world, asked.micro_batches
    if config.train.zero_stage == 3:
        # Forward and backward both gather the weights, unless DeepSpeed keeps all of them in between.
        gathers = 1 if n <= LIVE else 2
        step = part * passes * (gathers * b * n + 4 * t)
    else:
        # Stage 2 adds gradients up after each micro-batch, stage 1 once.
        step = part * ((passes if config.train.zero_stage == 2 else 1) * 2 * 4 * t + b * t)
    return Traffic(
        round(step),
        asked.steps,
        4 * theta // config.dft.reuse if asked.paired else 0,
        _core(asked) if asked.paired else 0,
    )


def _core(asked: Asked) -> int:
    """A bitmap and fp32 values; or all of θ, where something is added to every element."""
    theta = sum(p.numel for p in asked.model.theta)
    return round(4 * theta if asked.config.dft.everywhere else theta / 8 + 4 * float(asked.config.method.top) * theta)


def disk(asked: Asked) -> Disk:
    """Every round's checkpoint is the core, all of θ, or θ with AdamW's moments (12 bytes)."""
    config, model = asked.config, asked.model
    theta = sum(p.numel for p in model.theta)
    t = sum(model.trained(config.train.adapter, config.lora.rank))
    top, name = float(config.method.top), config.method.name
    if name == "dft":
        checkpoint = float(_core(asked))
        checkpoint += 4 * theta if config.dft.reuse > 1 else 0
    elif name in ("interpolate", "rome", "memit"):
        checkpoint = 4.0 * theta
    else:
        checkpoint = 4 * theta + 8 * t + (4 * t if config.train.adapter != "none" else 0)
    changed = min(1.0, top * config.method.rounds) if name == "dft" and not config.dft.everywhere else 1.0
    # Places cost a bitmap, or a byte each where few changed; none where all did.
    places = 0.0 if changed == 1 else min(1 / 8, changed)
    files = model.saved_bytes * model.elements
    return Disk(
        round(checkpoint),
        config.method.rounds,
        round(theta * (places + 2 * model.saved_bytes * changed)),
        files if config.warmup.epochs else 0,
        files if config.run.export else 0,
    )
