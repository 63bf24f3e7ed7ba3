"""What ROME and MEMIT do alike on the driver: checks, layers, prefixes, covariances, and work dealt over the ranks."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from dft_cluster.config import Config
from dft_cluster.editing import contexts, layers, trace
from dft_cluster.editing.covariance import refuse_unreadable, text_for
from dft_cluster.editing.requests import Request, Row, request
from dft_cluster.editing.subjects import refuse_without_subject, span
from dft_cluster.editing.values import Place, Values
from dft_cluster.evaluation.probes import batched
from dft_cluster.methods.job import Adapter, Job, RoundRefusedError
from dft_cluster.models.mlp import down_projections
from dft_cluster.models.structure import Parameter, skeleton
from dft_cluster.ranks.rank import Rank
from dft_cluster.ranks.team import Team

T = TypeVar("T")
_TEXTS = 8
"""Texts of a rank's forward pass while a covariance is measured."""
_EVERY = 10.0
"""Seconds between two lines of progress."""


class Edits:
    """A method that changes the down-projections of some layers, by closed forms, in one round."""

    contrasts = False
    once = True
    several: int
    """How many layers it edits by rule."""
    most: int
    """How many it can be told to edit."""
    clamp: float
    """Its own bound on the change of a value, relative to its norm."""

    def __init__(self, config: Config) -> None:
        """Methods keep nothing of their own from round to round."""

    def weights(self, config: Config, folder: Path, parameters: Sequence[Parameter]) -> Sequence[Parameter]:
        places = down_projections(skeleton(folder, config.model.trust_remote_code))
        wanted = config.method.layers
        layers.check(wanted, len(places), self.most)
        chosen = range(len(places) - 1) if wanted == "trace" else self.told(config, len(places))
        names = {places[layer].weight for layer in chosen}
        return [p for p in parameters if p.name in names]

    def told(self, config: Config, depth: int) -> list[int]:
        """The layers that need no tracing to be known."""
        wanted = config.method.layers
        return layers.by_rule(depth, self.several) if isinstance(wanted, str) else sorted(wanted)

    def adapter(self, _config: Config, _number: int) -> Adapter:
        return "none"

    def check(self, job: Job) -> None:
        wanted = job.config.editing
        refuse_unreadable(wanted.covariance, wanted.covariance_split, wanted.covariance_samples)
        refuse_without_subject(job.facts)
        for fact in job.facts:
            request(job.layout, fact, [])

    def layers(self, team: Team, job: Job) -> list[int]:
        """The layers to edit; traced over some of the facts where that is asked for."""
        depth = len(team.everyone.call(Rank.places)[0])
        if job.config.method.layers != "trace":
            return self.told(job.config, depth)
        asked = [
            trace.Asked(
                job.layout.prompt(f.prompt), *span(job.layout, f.prompt, f.subject), job.config.train.seed + number
            )
            for number, f in enumerate(job.facts[: trace.FACTS])
        ]
        ranks, told = team.everyone.size, []
        eta = Eta(job.say, "causal tracing", len(asked))
        for turn in in_turns(asked, ranks):
            told += team.everyone.each(Rank.trace, [(turn[i::ranks],) for i in range(ranks)])
            eta.done(len(turn))
        effects = [sum(one) / len(asked) for one in zip(*told, strict=True)]
        chosen = layers.by_effect(effects, self.several)
        center = layers.strongest(effects)
        best = effects[center]
        job.note(
            f"causal tracing over {len(asked)} facts: of those below the last block the MLPs around layer {center} bring back "
            f"most of the answer's probability ({100 * best:.1f} points); editing {_listed(chosen)} of 0 to {depth - 1}"
        )
        if best < trace.LITTLE:
            job.note(
                "warning: that is next to nothing: the model does not know these facts, or says its answers whatever the "
                "subject. Right would be method.layers=auto, or a list"
            )
        return chosen


def _listed(chosen: Sequence[int]) -> str:
    return f"layer{'s'[: len(chosen) > 1]} {', '.join(map(str, chosen))}"


def prefixes(team: Team, job: Job, count: int) -> list[str]:
    """What the model itself says, as prefixes; rank 0's word counts."""
    begin = contexts.openings(job.layout)
    tokens, seed = job.config.editing.context_tokens, job.config.train.seed
    return contexts.as_text(job.layout, team.everyone.call(Rank.say_prefixes, begin, count, tokens, seed)[0])


def covariances(team: Team, job: Job, chosen: Sequence[int], requests: Sequence[Request]) -> dict[str, float]:
    """Rank 0 gets E[k kᵀ] of every layer: measured by all ranks, or kept from an earlier run.

    One pass over the text measures every layer. Returned are the seconds that it would have taken beyond those spent now.
    """
    settings = job.config.editing
    # Every fact's bare prompt, then each behind the first prefix, and so on.
    rows = [row for turn in zip(*(one.rows for one in requests), strict=True) for row in turn]
    text = text_for(settings.covariance, settings.covariance_split, settings.covariance_samples, rows, job.layout)
    inner = team.everyone.call(Rank.places)[0][chosen[0]].inner
    job.note(f"covariance of the keys: {text.tokens:,} tokens, {text.source}")
    if text.tokens < inner:
        job.note(
            f"warning: the covariance comes from too little text, {text.tokens:,} tokens for keys of width {inner:,}; it is "
            "shrunk so that it stays solvable. Right would be a longer text (editing.covariance: a text file or a hub data set)"
        )
    (missing, seconds, notes), *_ = team.everyone.call(
        Rank.recall_covariances, chosen, text.fingerprint, len(text.passages)
    )
    for note in notes:
        job.say(note)
    if not missing:
        job.say(f"covariance of {_listed(chosen)}: kept from an earlier run, which took {seconds:.0f} s to measure it")
        return {"covariance": seconds}
    began = time.perf_counter()
    team.everyone.call(Rank.begin_covariances, missing)
    ranks = team.everyone.size
    # Longest first: texts of a pass are of like length, and the estimate of the time left errs on the safe side.
    order = sorted(text.passages, key=lambda one: one.tokens, reverse=True)
    eta = Eta(job.say, f"covariance of {_listed(missing)}", len(order))
    for turn in in_turns(order, _TEXTS * ranks):
        team.everyone.each(Rank.add_covariances, [(turn[i::ranks],) for i in range(ranks)])
        eta.done(len(turn))
    spent = time.perf_counter() - began
    unkept, *_ = team.everyone.call(Rank.end_covariances, spent)
    for note in unkept:
        job.note(f"warning: {note}. Right would be a DFT_CACHE that can be written, with room for them")
    return {"covariance": seconds - spent} if seconds > spent else {}


def in_turns(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]


class Eta:
    """Progress in words, now and then: how much is done, and how long the rest will take."""

    def __init__(self, say: Callable[[str], None], what: str, total: int) -> None:
        self._say, self._what, self._total = say, what, total
        self._done, self._began = 0, time.perf_counter()
        self._spoke = self._began

    def done(self, count: int) -> None:
        self._done += count
        now = time.perf_counter()
        if now - self._spoke < _EVERY and self._done < self._total:
            return
        self._spoke = now
        left = (now - self._began) * (self._total - self._done) / self._done
        self._say(f"{self._what}: {self._done} of {self._total}, {left:.0f} s left")


def keys_of(team: Team, rows: Sequence[Sequence[Row]], layer: int, block: int) -> tuple[Tensor, Tensor]:
    """By fact: its keys [fact, row, inner] and states [fact, row, hidden], read by all ranks."""
    each, ranks = len(rows[0]), team.everyone.size
    shares = [[row for one in rows[i::ranks] for row in one] for i in range(ranks)]
    told = team.everyone.each(Rank.read_states, [(share, layer, block) for share in shares])
    keys = torch.empty(len(rows), each, told[0][0].shape[1])
    states = torch.empty(len(rows), each, told[0][1].shape[1])
    for i, (own_keys, own_states) in enumerate(told):
        keys[i::ranks] = own_keys.view(-1, *keys.shape[1:])
        states[i::ranks] = own_states.view(-1, *states.shape[1:])
    return keys, states


def values_of(team: Team, job: Job, requests: Sequence[Request], place: Place, clamp: float) -> Values:
    """The values of all facts, in batches of like length dealt over all ranks."""
    settings, ranks = job.config.editing, team.everyone.size
    size = min(settings.batch, math.ceil(len(requests) / ranks))
    batches = batched(requests, size, lambda one: one.later)
    wanted: list[Tensor | None] = [None] * len(requests)
    given: list[Tensor | None] = [None] * len(requests)
    losses = [math.nan] * len(requests)
    eta = Eta(job.say, "values", len(requests))
    for turn in in_turns(batches, ranks):
        shares = [[requests[at] for at in batch] for batch in turn] + [[]] * (ranks - len(turn))
        told = team.everyone.each(Rank.seek_values, [(share, place, settings, clamp) for share in shares])
        for batch, values in zip(turn, told, strict=False):
            assert values is not None
            for row, at in enumerate(batch):
                wanted[at], given[at], losses[at] = values.wanted[row], values.given[row], values.losses[row]
        eta.done(sum(map(len, turn)))
    return Values(_stacked(wanted), _stacked(given), losses)


def _stacked(rows: Sequence[Tensor | None]) -> Tensor:
    return torch.stack([row for row in rows if row is not None])


def refuse_lost_values(number: int, job: Job, losses: Sequence[float]) -> None:
    lost = [fact.id for fact, loss in zip(job.facts, losses, strict=False) if not math.isfinite(loss)]
    if lost:
        raise RoundRefusedError(
            f"round {number}: the value of {', '.join(lost[:5])} was lost (NaN or infinity); the round before it stands. Right "
            "would be a smaller editing.lr, a smaller editing.clamp or train.precision=fp32"
        )


def read_tokens(requests: Sequence[Request]) -> int:
    """Tokens of the prompts and answers that the values are sought with."""
    return sum(len(row.ids) for one in requests for row in one.rows)
