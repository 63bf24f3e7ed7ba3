"""Rank-One Model Editing (Meng et al. 2022): one fact after another, in the MLP of one layer.

    k* = mean over sampled prefixes of the down-projection's input at the subject's last token
    v* = the down-projection's output there, moved so that the new answer is said (`editing/values.py`)
    W ← W + Λ(C⁻¹k*)ᵀ        Λ = (v* − W k*) / ((C⁻¹k*)ᵀ k*)        C = E[k kᵀ]

so that W k* = v*, where W are the fp32 masters. The keys do not depend on the weight that is edited: they are read for all
facts beforehand, by all ranks. Each value is sought in the model as the facts before have left it.
"""

import torch

from dft_cluster.editing.requests import request, subjects
from dft_cluster.editing.values import Place
from dft_cluster.methods.clock import Clock
from dft_cluster.methods.editing import (
    Edits,
    Eta,
    covariances,
    keys_of,
    prefixes,
    read_tokens,
    refuse_lost_values,
)
from dft_cluster.methods.job import Job, Outcome
from dft_cluster.ranks.rank import Rank
from dft_cluster.ranks.team import Team


class Rome(Edits):
    several, most, clamp = 1, 1, 4.0

    def round(self, team: Team, job: Job, number: int) -> Outcome:
        settings, others, clock = job.config.editing, team.everyone.size - 1, Clock()
        [layer] = self.layers(team, job)
        before = prefixes(team, job, max(settings.key_contexts, settings.contexts))
        clock.lap("prefixes")
        requests = [request(job.layout, fact, before[: settings.contexts]) for fact in job.facts]
        elsewhere = covariances(team, job, [layer], requests)
        clock.lap("covariance")
        rows = [subjects(job.layout, fact, before[: settings.key_contexts]) for fact in job.facts]
        keys = keys_of(team, rows, layer, layer)[0].mean(1)
        clock.lap("keys")
        place, clamp, losses = Place(layer, inside=True), settings.clamp or self.clamp, []
        eta = Eta(job.say, "edits", len(requests))
        for key, one in zip(keys, requests, strict=True):
            asking = [([one], place, settings, clamp), *[([], place, settings, clamp)] * others]
            values = team.everyone.each(Rank.seek_values, asking)[0]
            assert values is not None
            losses += values.losses
            refuse_lost_values(number, job, losses)
            clock.lap("new")
            given = torch.stack(team.everyone.call(Rank.map_key, layer, key)).sum(0)
            solved = team.everyone.call(Rank.solve_rank_one, layer, key, given, values.wanted[0])[0]
            assert solved is not None
            team.everyone.call(Rank.edit, layer, *solved)
            eta.done(1)
            clock.lap("edit")
        return Outcome({"new": losses}, {"new": read_tokens(requests)}, clock.seconds, elsewhere=elsewhere)
