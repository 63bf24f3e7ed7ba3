"""Mass-Editing Memory in a Transformer (Meng et al. 2023): all facts at once, spread over several layers.

For each fact i, z_i = h_i^L + argmin_δ … is a state after the last edited layer L that says the new answer
(`editing/values.py`). Then, from the first edited layer to the last, with keys and states read anew after each edit,

    r_i^l = (z_i − h_i^L) / (L − l + 1)        Δ^l = R^l K^lᵀ (C^l + K^l K^lᵀ)⁻¹        C^l = λ·E[k kᵀ]

k_i^l is the mean of the bare prompt's key and of the mean key behind the sampled prefixes. kᵀE[k kᵀ]⁻¹k, what a key weighs
against all others, is the MLP's width on average: λ = 15,000, chosen for models whose MLPs are about 11,008 wide, holds a
narrower one back too much. `auto` takes λ in proportion to the width.
"""

from dft_cluster.arithmetic.closed_form import spread
from dft_cluster.editing.requests import request, subjects
from dft_cluster.editing.values import Place
from dft_cluster.methods.clock import Clock
from dft_cluster.methods.editing import (
    Edits,
    covariances,
    keys_of,
    prefixes,
    read_tokens,
    refuse_lost_values,
    values_of,
)
from dft_cluster.methods.job import Job, Outcome
from dft_cluster.ranks.rank import Rank
from dft_cluster.ranks.team import Team

WEIGHT, WIDTH = 15_000.0, 11_008


class Memit(Edits):
    several, most, clamp = 5, 1 << 30, 0.75

    def round(self, team: Team, job: Job, number: int) -> Outcome:
        settings, ranks, clock = job.config.editing, team.everyone.size, Clock()
        chosen = self.layers(team, job)
        last = chosen[-1]
        before = prefixes(team, job, settings.contexts)
        clock.lap("prefixes")
        requests = [request(job.layout, fact, before) for fact in job.facts]
        elsewhere = covariances(team, job, chosen, requests)
        clock.lap("covariance")
        values = values_of(team, job, requests, Place(last, inside=False), settings.clamp or self.clamp)
        refuse_lost_values(number, job, values.losses)
        clock.lap("new")
        weight = settings.covariance_weight
        if weight == "auto":
            weight = WEIGHT * team.everyone.call(Rank.places)[0][last].inner / WIDTH
        rows = [subjects(job.layout, fact, before) for fact in job.facts]
        for place, layer in enumerate(chosen):
            keys, states = keys_of(team, rows, layer, last)
            mean = (keys[:, 0] + keys[:, 1:].mean(1)) / 2
            missing = spread(values.wanted - states[:, 0], place, len(chosen) - 1).T.contiguous()
            solved, *_ = team.everyone.each(Rank.solve_closed_form, [(layer, mean.T, weight)] * ranks)
            assert solved is not None
            team.everyone.call(Rank.edit, layer, missing, solved)
        clock.lap("edit")
        return Outcome({"new": values.losses}, {"new": read_tokens(requests)}, clock.seconds, elsewhere=elsewhere)
