"""Delicate Fine-Tuning: keep only what the old and the new knowledge disagree on.

    Δold = FT{θ, K_old} − θ        Δnew = FT{θ, K_new} − θ
    core = Δnew at the top T of |Δnew − Δold| among the elements where the two point in opposite directions, else 0
    θ ← θ + λ·core

K_old and K_new hold the same prompts in the same words and only the key knowledge in the answer differs, so that
elements whose deltas agree carry sentence structure, grammar and style: they are left alone. Repeated from the new θ
until the model's answers are the new ones.

`dft.mask` puts another choice of as many elements in the place of the conflicts, for comparison: at random, by |Δnew|
alone, or where the deltas agree. The first two do without Δold, and all ranks train on the new answers. `dft.by=new` ranks
conflicts (or agreements) by |Δnew|: by how much the new answers ask for an element, whatever the old ones would have it be.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from decimal import ROUND_CEILING, Context, Decimal
from typing import Any

import numpy as np

from dft_cluster.arithmetic.selection import (
    BINS,
    SAMPLE,
    Bracket,
    Cut,
    Tally,
    allot,
    bracket_from,
    count_to_keep,
    find_cuts,
)
from dft_cluster.config import LOOKS_AT_OLD, Config
from dft_cluster.errors import InputError
from dft_cluster.facts.layout import Example
from dft_cluster.methods.clock import Clock
from dft_cluster.methods.job import CORE, THETA, Job, OfTheWhole, Outcome, RoundRefusedError, refuse_lost_losses
from dft_cluster.models.structure import Parameter
from dft_cluster.ranks.rank import Rank
from dft_cluster.ranks.team import Team
from dft_cluster.training.batches import mixed
from dft_cluster.training.core import Addition, Old, Survey
from dft_cluster.training.engine import FineTune

WHOLE = 0  # the one group of `scope=global`


class Dft(OfTheWhole):
    def __init__(self, config: Config) -> None:
        self.contrasts = LOOKS_AT_OLD[config.dft.mask]

    def check(self, job: Job) -> None:
        """k = 0 would select nothing, ever."""
        method = job.config.method
        if method.of == "conflicts":
            return
        sizes = {p.name: p.numel for p in job.parameters}
        counted = sizes if method.scope == "tensor" else {"the model": sum(sizes.values())}
        empty = [name for name, size in counted.items() if count_to_keep(method.top, size) == 0]
        if empty:
            smallest = min(counted[name] for name in empty)
            raise InputError(
                f"method.top: {method.top} of {smallest} elements selects none in {empty[0]}"
                f"{f' and {len(empty) - 1} more' if empty[1:] else ''}; right would be at least {_share_of_one(smallest)}, "
                "or method.scope=global"
            )

    def round(self, team: Team, job: Job, number: int) -> Outcome:
        clock = Clock()
        team.everyone.call(Rank.keep)
        clock.lap("hold")
        learns_old = self.contrasts and (number - 1) % job.config.dft.reuse == 0
        taught = job.old if learns_old else None
        if learns_old and job.config.dft.renew:
            taught = job.says_now(team)
            clock.lap("draw")
        old, new = self._fine_tune(team, job, number, taught, clock)
        tuned = {side: one for side, one in (("old", old), ("new", new)) if one is not None}
        clock.skip()
        try:
            refuse_lost_losses(number, **tuned)
        except RoundRefusedError:
            team.everyone.call(Rank.restore_start)
            raise
        surveys = _meet(team, job, number, learns_old)
        _refuse_broken(team, job, surveys, number)
        clock.lap("exchange")
        cuts, quotas, by_tensor, k = _choose(team, job, surveys, number)
        clock.lap("select")
        kept = _apply(team, job, cuts, quotas, by_tensor)
        clock.lap("apply")
        core = _describe(job.parameters, _added(s.conflicts for s in surveys), kept, cuts, k)
        if job.config.dft.scales:
            core["scale"] = _search_scale(team, job)
            clock.lap("search")
        return Outcome(
            loss={side: one.losses for side, one in tuned.items()},
            tokens={side: one.tokens for side, one in tuned.items()},
            seconds={side: one.seconds for side, one in tuned.items()} | clock.seconds,
            core=core,
            side_by_side=team.paired,
            holds=THETA if job.config.dft.everywhere else CORE,
        )

    def _fine_tune(
        self, team: Team, job: Job, number: int, taught: Sequence[Example] | None, clock: Clock
    ) -> tuple[FineTune | None, FineTune]:
        """Old and new, side by side or one after the other; the new answers alone where the old delta is not learnt."""
        if taught is None:
            new, *_ = team.new.call(Rank.fine_tune, job.new, job.pad, number, "new")
            return None, new
        variant = job.config.dft
        if team.paired:
            both = (
                team.old.start(Rank.fine_tune, taught, job.pad, number, "old", variant.old_epochs),
                team.new.start(Rank.fine_tune, job.new, job.pad, number, "new"),
            )
            (old, *_), (new, *_) = (pending.wait() for pending in both)
            return old, new
        old, *_ = team.old.call(Rank.fine_tune, taught, job.pad, number, "old", variant.old_epochs)
        clock.skip()
        team.old.call(Rank.hold)
        clock.lap("hold")
        new, *_ = team.new.call(Rank.fine_tune, job.new, job.pad, number, "new")
        return old, new


def _share_of_one(elements: int) -> Decimal:
    """The smallest share, in three digits, that selects one of so many elements."""
    return Context(prec=3, rounding=ROUND_CEILING).divide(Decimal(1), Decimal(elements))


def _meet(team: Team, job: Job, number: int, learnt_old: bool) -> list[Survey]:
    """The old delta reaches the rank that holds the new one, which scores every element."""
    sending = team.old.start(Rank.send_delta) if team.paired and learnt_old else None
    variant, chance = job.config.dft, mixed(job.config.train.seed, number)
    source: Old = "now" if variant.reuse == 1 else "keep" if learnt_old else "kept"
    surveys = team.new.start(Rank.survey, SAMPLE // team.new.size, variant.mask, variant.by, chance, source)
    if sending is not None:
        sending.wait()
    return surveys.wait()


def _refuse_broken(team: Team, job: Job, surveys: Sequence[Survey], number: int) -> None:
    broken = sorted({parameter for survey in surveys for parameter in survey.broken})
    if broken:
        team.everyone.call(Rank.restore_start)
        known = {p.index: p.name for p in job.parameters}
        names = ", ".join(known[p] for p in broken[:5])
        raise RoundRefusedError(
            f"round {number}: a delta holds NaN or infinity in {names}{' …' if broken[5:] else ''}; θ is as it was before the "
            "round. Right would be a smaller train.lr, train.clip=1.0 or train.precision=fp32"
        )


def _choose(
    team: Team, job: Job, surveys: Sequence[Survey], number: int
) -> tuple[dict[int, Cut], dict[tuple[int, int], int], bool, int]:
    """The exact cut of every group of elements: the whole model, or each tensor."""
    method = job.config.method
    by_tensor = method.scope == "tensor"
    conflicts = _added(survey.conflicts for survey in surveys)
    sizes = {p.index: p.numel for p in job.parameters}
    if not by_tensor:
        conflicts, sizes = {WHOLE: sum(conflicts.values())}, {WHOLE: sum(sizes.values())}
    counted = conflicts if method.of == "conflicts" else sizes
    counts = {group: count_to_keep(method.top, counted.get(group, 0)) for group in sizes}
    wanted = {group: k for group, k in counts.items() if k and conflicts.get(group)}
    if not wanted:
        team.everyone.call(Rank.restore_start)
        raise RoundRefusedError(
            f"round {number}: nothing to select, {sum(conflicts.values())} elements are in conflict and method.top={method.top} "
            f"of {method.of} is none of them; θ is as it was before the round"
        )

    bins = BINS if not by_tensor else 1 << 12

    def ask(brackets: Mapping[int, Bracket]) -> dict[int, Tally]:
        answers = team.new.call(Rank.tally, dict(brackets), by_tensor)
        return {group: Tally.total(answer[group] for answer in answers) for group in brackets}

    sampled = np.concatenate([survey.sampled for survey in surveys])
    starts = {} if by_tensor else {WHOLE: bracket_from(sampled, counts[WHOLE] / sizes[WHOLE], bins)}
    cuts = find_cuts(wanted, ask, starts, bins)
    quotas: dict[tuple[int, int], int] = {}
    if any(cut.ties for cut in cuts.values()):
        equal = [tie for ties in team.new.call(Rank.ties, cuts, by_tensor) for tie in ties]
        for group, cut in cuts.items():
            if cut.ties:
                quotas |= allot(cut.ties, (tie for tie in equal if not by_tensor or tie[0] == group))
    return cuts, quotas, by_tensor, sum(counts.values())


def _search_scale(team: Team, job: Job) -> float:
    """The smallest λ with which the most training prompts get their new answer; θ is left there."""
    last, best, right = job.config.method.scale, (-1.0, 0.0), 0.0
    for scale in sorted(job.config.dft.scales):
        team.everyone.call(Rank.rescale, scale / last)
        last, right = scale, job.right(team)
        best = max(best, (right, -scale))
    if -best[1] != last:
        team.everyone.call(Rank.rescale, -best[1] / last)
    return -best[1]


def _apply(
    team: Team, job: Job, cuts: dict[int, Cut], quotas: dict[tuple[int, int], int], by_tensor: bool
) -> dict[int, int]:
    variant = job.config.dft
    outside = variant.rest if variant.outside is None else variant.outside
    adding = Addition(job.config.method.scale, variant.rest, outside, variant.add == "difference")
    applying = team.new.start(Rank.apply, cuts, quotas, by_tensor, adding)
    receiving = team.old.start(Rank.receive_core, variant.everywhere) if team.paired else None
    kept = _added(applying.wait())
    if receiving is not None:
        receiving.wait()
    return kept


def _added(counts: Any) -> dict[int, int]:
    total: dict[int, int] = defaultdict(int)
    for count in counts:
        for parameter, value in count.items():
            total[parameter] += value
    return dict(total)


def _describe(
    parameters: Sequence[Parameter],
    conflicts: Mapping[int, int],
    kept: Mapping[int, int],
    cuts: Mapping[int, Cut],
    k: int,
) -> dict[str, Any]:
    """Where the core landed: shares of all elements, the threshold, and counts by layer and module kind."""
    elements = sum(p.numel for p in parameters)
    places: dict[tuple[int, str], dict[str, Any]] = {}
    for p in parameters:
        key = (-1 if p.layer is None else p.layer, p.kind)
        place = places.setdefault(key, {"layer": p.layer, "kind": p.kind, "elements": 0, "conflicts": 0, "kept": 0})
        place["elements"] += p.numel
        place["conflicts"] += conflicts.get(p.index, 0)
        place["kept"] += kept.get(p.index, 0)
    return {
        "elements": elements,
        "k": k,
        "kept": sum(kept.values()),
        "conflict_share": sum(conflicts.values()) / elements,
        "kept_share": sum(kept.values()) / elements,
        "threshold": min(cut.score for cut in cuts.values()),
        "by_layer": [places[key] for key in sorted(places)],
    }
