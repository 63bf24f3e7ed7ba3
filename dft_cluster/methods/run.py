"""A run from its first word to its last: one team of ranks after another, until the result is there."""

import secrets
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from dft_cluster.errors import InputError
from dft_cluster.methods.ending import end
from dft_cluster.methods.job import RunFailedError
from dft_cluster.methods.prepare import WARM_UP, Prepared
from dft_cluster.methods.progress import Progress
from dft_cluster.methods.rounds import Rounds
from dft_cluster.methods.warm_up import warm_up
from dft_cluster.ranks.rank import Rank, Source
from dft_cluster.ranks.shared import blind
from dft_cluster.ranks.team import LostRankError, Team
from dft_cluster.runs.console import Console
from dft_cluster.runs.record import Record

Launch = Callable[[Prepared, Source, Console], AbstractContextManager[Team]]
"""Starts the ranks with θ loaded, and ends them."""

GIVEN = ("groups", "gpus_per_rank", "cpus_per_rank", "threads")
"""Settings of `cluster` that may be left to the cluster, and are then kept in config.json."""


def run(prepared: Prepared, launch: Launch, console: Console) -> dict[str, Any]:
    """Updates the model and returns the result line (also the last of metrics.jsonl)."""
    record = _open(prepared, console)
    if record.result is not None:
        console.say(f"{record.storage.uri} is finished: {record.result['stop_reason']}")
        return record.result
    with Progress(prepared, record, console) as progress:
        _Teams(progress, launch).go_on(until=lambda: progress.result is not None)
        assert progress.result is not None
        return progress.result


def warmed(prepared: Prepared, launch: Launch, console: Console) -> str:
    """The run's base after its warm-up alone: the folder (or URI) that the method would begin with."""
    with Progress(prepared, _open(prepared, console), console) as progress:
        _Teams(progress, launch, warm_up_only=True).go_on(until=lambda: progress.next != WARM_UP)
        return progress.base


def _open(prepared: Prepared, console: Console) -> Record:
    record = Record(prepared.config)
    for note in prepared.notes:
        console.say(note)
    console.phase("taking the model's fingerprint")
    record.look({**prepared.identity(), "wandb_id": secrets.token_hex(4)})
    return record


class _Teams:
    """One team after another: each for as many rounds as it is built for, and a new one for one that is lost."""

    def __init__(self, progress: Progress, launch: Launch, *, warm_up_only: bool = False) -> None:
        self.progress, self.launch, self.warm_up_only = progress, launch, warm_up_only
        self.record, self.config = progress.record, progress.config

    def go_on(self, *, until: Callable[[], bool]) -> None:
        failures: list[str] = []
        while not until():
            before = self.progress.next
            try:
                self._serve()
            except LostRankError as lost:
                # A finished round between two failures shows that the run can be saved.
                failures = [*(failures if self.progress.next == before else []), str(lost)]
                self._remember(lost.given)
                self._lost(failures, lost)
            except InputError as error:
                if not failures:
                    raise
                # Asked for when the run began, and granted: it is the cluster that has changed.
                raise RunFailedError(f"after {'; '.join(failures)}: {error}") from error

    def _serve(self) -> None:
        """One team: the warm-up where it is due, then rounds up to the end, or to one that needs other ranks."""
        progress = self.progress
        # Before there are ranks that would take the memory of another driver's.
        if self.record.exists and self._ended():
            return
        seat, source = self._on_what_it_began(progress.seat(progress.next)), progress.source
        with self.launch(seat, source, progress.console) as team:
            if self._ended():
                return
            try:
                self._admit(team)
                if progress.next == WARM_UP:
                    warm_up(progress, team)
                if self.warm_up_only or progress.needs_others(seat, progress.next):
                    return
                if progress.source != source:
                    team.everyone.call(Rank.load, progress.source)
                rounds = Rounds(progress, team, seat)
                if (reason := rounds.go_on()) is not None:
                    progress.result = end(rounds, reason)
            except InputError as error:
                raise RunFailedError(str(error)) from error

    def _ended(self) -> bool:
        """Whether another driver has ended the run meanwhile; asked once the folder is this driver's alone."""
        if not self.record.begun:
            self.progress.begin()
        return self.progress.result is not None

    def _admit(self, team: Team) -> None:
        """Writes down what the team was given and what is to be said of it; proves that it sees the run's folder."""
        self._remember(team.given)
        self.record.begin()
        for note in team.notes:
            self.progress.say_and_note(note)
        self.progress.storage.make("checkpoints")
        if unseen := blind(team.everyone, self.progress.storage):
            raise InputError(
                f"run.dir: {self.config.run.dir} is not the same folder for rank(s) {unseen} as for the driver; right would be a "
                "shared folder (NFS) or a storage URI such as s3://bucket/runs"
            )

    def _on_what_it_began(self, seat: Prepared) -> Prepared:
        """What the cluster gave when the run began it has again, unless the config says otherwise: as many threads, for the same
        bits (which groups of another size do not give), and GPUs, which are waited for (or the run is refused), for it would
        never end on CPUs."""
        cluster, known = seat.config.cluster, self.record.identity
        before = known.get("config", {}).get("cluster", {})
        was = before.get("groups") or known.get("groups")
        # Without an old side all groups are one.
        alike = seat.method.contrasts or cluster.groups in (None, was)
        given = GIVEN if alike and before.get("ranks_per_group") == cluster.ranks_per_group else ("gpus_per_rank",)
        known = {**known, "groups": was}
        again = {key: known[key] for key in given if getattr(cluster, key) is None and key in known}
        update = {"cluster": cluster.model_copy(update=again)}
        return replace(seat, config=seat.config.model_copy(update=update))

    def _remember(self, given: Mapping[str, float]) -> None:
        """What it was given first: a later start may have asked for something else, for itself."""
        for key, value in given.items():
            self.record.identity.setdefault(key, value)

    def _lost(self, failures: list[str], last: LostRankError) -> None:
        """Ranks are gone: says so, and lets new ones go on from the last finished round, unless that has failed too often."""
        most = self.config.cluster.max_failures
        if len(failures) > most:
            listed = "; ".join(f"{number}. {failure}" for number, failure in enumerate(failures, 1))
            raise RunFailedError(
                f"{len(failures)} failures in a row with no finished round between (cluster.max_failures={most}): {listed}"
            ) from last
        where = f"round {self.progress.next - 1}" if self.progress.next > 1 else "the beginning"
        self.progress.console.say(f"{last}; starting new ranks, which go on from {where}")
        self.record.note(f"{last}; new ranks went on from {where}")
