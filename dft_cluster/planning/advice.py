"""Which setting to change when a plan does not fit, and how many groups to make of the same ranks."""

from collections.abc import Iterator
from dataclasses import dataclass

from dft_cluster.config import ONE_ROUND
from dft_cluster.planning import memory, traffic
from dft_cluster.planning.asked import Asked
from dft_cluster.planning.capacity import Capacity, Fit, fit
from dft_cluster.planning.ledger import Place
from dft_cluster.planning.memory import GIB


@dataclass(frozen=True)
class Change:
    """One setting's other value, with what the fullest rank would save by it alone (less than 0: need more)."""

    setting: str
    asked: Asked
    device_saves: int
    host_saves: int
    fits: bool

    def text(self) -> str:
        saves = [
            f"{'saves' if size >= 0 else 'costs'} {abs(size) / GIB:.2f} GiB of a rank's {place}"
            for place, size in (("device", self.device_saves), ("host", self.host_saves))
            if abs(size) > GIB / 200
        ]
        return f"{self.setting}: {' and '.join(saves) or 'saves nothing'}{', and then it fits' if self.fits else ''}"


@dataclass(frozen=True)
class Advice:
    """Every setting that could be changed, in the order in which they should be; and the first way that is enough."""

    changes: list[Change]
    way: list[str]
    """Settings to change together; empty where none is needed, or all of them are not enough."""
    enough: Asked | None


def advise(asked: Asked, capacity: Capacity) -> Advice:
    """The first single change that is enough; else changes on top of each other, each as strong as it goes."""
    had = memory.of_ranks(asked)
    changes = [_weighed(name, other, had, capacity) for steps in _settings(asked, capacity) for name, other in steps]
    alone = next((change for change in changes if change.fits), None)
    if alone is not None:
        return Advice(changes, [alone.setting], alone.asked)
    now, way = asked, list[str]()
    for kind in range(len(list(_settings(asked, capacity)))):
        steps = list(list(_settings(now, capacity))[kind])
        name, best = min(steps, key=lambda step: _lack(fit(step[1], capacity)), default=("", now))
        if _lack(fit(best, capacity)) < _lack(fit(now, capacity)):
            now, way = best, [*way, name]
        if fit(now, capacity).fits:
            return Advice(changes, way, now)
    return Advice(changes, [], None)


def _lack(one: Fit) -> tuple[int, int]:
    return one.missing_devices, one.lack


def _weighed(name: str, other: Asked, had: list[memory.Memory], capacity: Capacity) -> Change:
    have = memory.of_ranks(other)

    def saved(place: Place) -> int:
        return max(one.of(place) for one in had) - max(one.of(place) for one in have)

    return Change(name, other, saved("device"), saved("host"), fit(other, capacity).fits)


def _settings(asked: Asked, capacity: Capacity) -> Iterator[Iterator[tuple[str, Asked]]]:
    """Each setting's further values, the mildest first, in the order in which to try them."""
    yield _stages(asked)
    yield _tokens(asked)
    yield _checkpointing(asked)
    yield _buffers(asked)
    yield _offload(asked)
    yield _groups(asked)
    yield _ranks(asked, capacity)


def _stages(asked: Asked) -> Iterator[tuple[str, Asked]]:
    last = 2 if asked.config.method.name in ONE_ROUND else 3  # they run facts through the whole model on each rank
    for stage in range(asked.config.train.zero_stage + 1, last + 1):
        yield f"train.zero_stage={stage}", asked.changed(train={"zero_stage": stage})


def _tokens(asked: Asked) -> Iterator[tuple[str, Asked]]:
    shapes = asked.shapes
    if not shapes:
        return
    longest, tokens = max(shape.width for shape in shapes), max(shape.tokens for shape in shapes)
    while tokens > longest:
        tokens = max(longest, tokens // 2)
        yield f"train.tokens_per_batch={tokens}", asked.changed(train={"tokens_per_batch": tokens})


def _checkpointing(asked: Asked) -> Iterator[tuple[str, Asked]]:
    if not asked.config.train.gradient_checkpointing:
        yield "train.gradient_checkpointing=true", asked.changed(train={"gradient_checkpointing": True})


def _buffers(asked: Asked) -> Iterator[tuple[str, Asked]]:
    if asked.device == "cuda" and asked.config.cluster.buffers == "device":
        yield "cluster.buffers=host", asked.changed(cluster={"buffers": "host"})


def _offload(asked: Asked) -> Iterator[tuple[str, Asked]]:
    """On a CPU there is nowhere to put it."""
    if asked.device == "cpu":
        return
    offload, stage = asked.config.train.offload, asked.config.train.zero_stage
    if offload == "none":
        yield "train.offload=optimizer", asked.changed(train={"offload": "optimizer"})
    if offload != "all" and stage == 3:
        yield "train.offload=all", asked.changed(train={"offload": "all"})


def _groups(asked: Asked) -> Iterator[tuple[str, Asked]]:
    if asked.paired:
        yield "cluster.groups=1 on the same ranks", one_group(asked)


def _ranks(asked: Asked, capacity: Capacity) -> Iterator[tuple[str, Asked]]:
    ranks = 2 * asked.config.cluster.ranks_per_group
    gpus = asked.config.cluster.gpus_per_rank or 1.0
    room = capacity.devices / gpus if asked.device == "cuda" else 2 * asked.ranks
    while ranks * asked.config.groups <= room:
        yield f"cluster.ranks_per_group={ranks}", asked.changed(cluster={"ranks_per_group": ranks})
        ranks *= 2


def one_group(asked: Asked) -> Asked:
    """Old and new one after the other, on all ranks."""
    return asked.changed(cluster={"groups": 1, "ranks_per_group": asked.config.world})


def two_groups(asked: Asked) -> Asked | None:
    """Old and new side by side, each on half of the ranks."""
    if not asked.contrasts or asked.config.world % 2:
        return None
    return asked.changed(cluster={"groups": 2, "ranks_per_group": asked.config.world // 2})


def groups(asked: Asked, capacity: Capacity) -> str:
    """groups=2 or groups=1 on the same ranks, and why."""
    if not asked.contrasts:
        return "cluster.groups: this method has no old side, all ranks are one group"
    one, two = one_group(asked), two_groups(asked)
    if two is None:
        return f"cluster.groups=1: {asked.ranks} rank{'s'[: asked.ranks > 1]} cannot be halved"
    place: Place = "device" if asked.device == "cuda" else "host"
    fits_one, fits_two = (fit(choice, capacity).fits for choice in (one, two))
    chosen = 2 if fits_two or not fits_one else 1
    moved = traffic.traffic(two)
    return (
        f"cluster.groups={chosen} of the two on {asked.ranks} ranks: groups=2 ({two.world} in each) needs "
        f"{memory.of_fullest(two, place).of(place) / GIB:.1f} GiB of a rank's {place}"
        f"{'' if fits_two else ', which does not fit'}, moves {(moved.deltas + moved.core) / GIB:.2f} GiB between the groups, "
        f"and takes {two.steps} steps a round, both sides at once; groups=1 ({one.world} in one) needs "
        f"{memory.of_fullest(one, place).of(place) / GIB:.1f} GiB{'' if fits_one else ', which does not fit'}, moves nothing "
        f"between groups, and takes {one.steps} steps one after the other, each over twice as many ranks"
    )
