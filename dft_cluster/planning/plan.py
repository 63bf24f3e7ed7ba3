"""The estimate of a job before anything starts: memory, bytes moved and written, whether it fits, and what to change."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dft_cluster.config import ONE_ROUND
from dft_cluster.evaluation.probes import Asked as Probe
from dft_cluster.evaluation.probes import batched, probes
from dft_cluster.facts.layout import Example
from dft_cluster.facts.pairs import given
from dft_cluster.methods.keeping import prompts_to_keep
from dft_cluster.methods.prepare import WARM_UP, Prepared
from dft_cluster.methods.training_set import Drawn, examples
from dft_cluster.methods.window import CONTEXT_ROOM
from dft_cluster.planning import advice, capacity, memory, traffic
from dft_cluster.planning.advice import Advice
from dft_cluster.planning.asked import Asked, Passes, shape_of
from dft_cluster.planning.calibrate import Seconds
from dft_cluster.planning.capacity import Capacity, Fit, Node
from dft_cluster.planning.memory import Memory
from dft_cluster.planning.model import Model
from dft_cluster.planning.text import written
from dft_cluster.planning.traffic import Disk, Traffic


@dataclass(frozen=True)
class Plan:
    asked: Asked
    """The seat that needs the most."""
    seat: str
    memories: list[Memory]
    traffic: Traffic
    disk: Disk
    there: Capacity
    fit: Fit
    advice: Advice | None
    """Where it does not fit."""
    groups: str
    notes: list[str]
    seconds: Seconds | None = None

    def text(self) -> str:
        return written(self)

    def timed(self, seconds: Seconds) -> "Plan":
        return replace(self, seconds=seconds)


def plan(prepared: Prepared, there: Capacity | None = None) -> Plan:
    """Of a job; without a capacity, for this machine."""
    there = there or Capacity((Node.here(),))
    prepared = _as_held(prepared, there)
    seats = {name: _asked(prepared, first, there) for name, first in _seats(prepared).items()}
    notes = []
    if prepared.config.method.name in ONE_ROUND:
        notes.append(f"{prepared.config.method.name} trains nothing: its own statistics and values are not counted")
    if prepared.config.facts.old == "generated":
        notes.append("the model's own sentences are not known yet: the records' old answers stand in for their lengths")
    return of_seats(seats, there, notes)


def _as_held(prepared: Prepared, there: Capacity) -> Prepared:
    """With one group of ranks, where two are no more than the default and the devices are enough for one alone."""
    config = prepared.config
    cluster, each = config.cluster, config.cluster.gpus_per_rank or 1.0
    if cluster.groups is not None or cluster.wait or there.device(cluster.gpus_per_rank) == "cpu":
        return prepared
    if not config.world * each > there.devices >= cluster.ranks_per_group * each:
        return prepared
    return replace(prepared, config=config.in_groups(1))


def of_seats(seats: dict[str, Asked], there: Capacity, notes: Sequence[str] = ()) -> Plan:
    """Of seats by name, the rounds' last. They need no job: the model need not be here, nor the facts."""
    lacks = {name: capacity.fit(asked, there) for name, asked in seats.items()}
    if any(asked.model.config is None for asked in seats.values()):
        notes = [*notes, "of the model only shapes are known: activations are not counted"]
    name = max(seats, key=lambda one: _need(lacks[one]))
    asked, lack = seats[name], lacks[name]
    rounds = list(seats.values())[-1]
    return Plan(
        asked,
        name,
        memory.of_ranks(asked),
        traffic.traffic(rounds),
        traffic.disk(rounds),
        there,
        lack,
        None if lack.fits else advice.advise(asked, there),
        advice.groups(rounds, there),
        list(notes),
    )


def _need(lack: Fit) -> tuple[int, ...]:
    """What tells the worst seat: what does not fit comes before what fits."""
    return lack.missing_devices, lack.lack, lack.device_needs, lack.host_needs


def _seats(prepared: Prepared) -> dict[str, int]:
    """The warm-up, and rounds that need ranks of their own: each by its first round."""
    config = prepared.config
    found = {"every round": 1}
    if config.method.rounds > 1 and prepared.seat(2).needs() != prepared.seat(1).needs():
        found = {"round 1": 1, "round 2 and on": 2}
    return ({"the warm-up": WARM_UP} if config.warmup.epochs else {}) | found


def _asked(prepared: Prepared, first: int, there: Capacity) -> Asked:
    seat = prepared.seat(first)
    model = Model.of_seat(seat)
    device = there.device(seat.config.cluster.gpus_per_rank)
    shapes = [shape_of([probe.example for probe in batch]) for batch in probe_batches(seat)]
    return Asked(
        seat.config,
        model,
        device,
        seat.method.contrasts,
        warm_up_sets(seat) if first == WARM_UP else training_sets(seat),
        tuple(shapes),
        Passes(model, seat.config.lora),
        first,
    )


def warm_up_sets(seat: Prepared) -> tuple[list[Example]]:
    """The old answers, as every group is taught them."""
    return (examples(given(seat.facts), "old", seat.layout, Drawn()),)


def training_sets(seat: Prepared) -> tuple[list[Example], ...]:
    """Both sides' examples, or the new answers alone; texts that the model will say are as long as they may be,
    and its rephrases as long as the prompts."""
    train, pairs = seat.config.train, given(seat.facts)
    begun = [len(seat.layout.prompt(prompt)) for prompt in prompts_to_keep(seat.config, seat.facts)] or [1] * train.keep
    reworded = Drawn(rephrases=[[pair.prompt] * train.rephrases for pair in pairs])
    kept = Drawn(keep=[(size, [0] * (size + train.keep_tokens)) for size in begun])
    sides = ("old", "new") if seat.method.contrasts else ("new",)
    return tuple(
        _with_contexts(examples(pairs, side, seat.layout, reworded), train.contexts)
        + examples([], side, seat.layout, kept)
        for side in sides
    )


def _with_contexts(found: list[Example], contexts: int) -> list[Example]:
    room = CONTEXT_ROOM
    longer = [Example((0,) * room + e.ids, e.start + room, e.stop + room) for e in found]
    return found + longer * contexts


def asked_probes(seat: Prepared) -> list[Probe]:
    likelihood = "likelihood" in seat.config.evaluate.protocols
    return probes(seat.facts, given(seat.facts), seat.layout, likelihood=likelihood)


def probe_batches(seat: Prepared) -> list[list[Probe]]:
    asked = asked_probes(seat)
    batches = batched(asked, seat.config.evaluate.batch, lambda probe: len(probe.example.ids))
    return [[asked[p] for p in batch] for batch in batches]
