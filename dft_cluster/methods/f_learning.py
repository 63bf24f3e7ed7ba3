"""Forgetting before learning (F-Learning; Ni et al. 2023):

    θ' = θ − λ·(FT{θ, K_old} − θ)        θ* = FT{θ', K_new}

Round 1 forgets, for `f_learning.epochs`; every later round is `train.epochs` epochs of one fine-tune on the new answers.
Forgetting and learning may each train all weights or an adapter, whose product then stands for the delta.
"""

from dft_cluster.config import FORGETS, Config
from dft_cluster.methods.clock import Clock
from dft_cluster.methods.full import go_on
from dft_cluster.methods.job import THETA, Adapter, Holds, Job, OfTheWhole, Outcome, refuse_lost_losses
from dft_cluster.ranks.rank import Rank
from dft_cluster.ranks.team import Team


class FLearning(OfTheWhole):
    def adapter(self, config: Config, number: int) -> Adapter:
        chosen = config.f_learning.forget if number == FORGETS else config.f_learning.learn
        return "lora" if chosen == "lora" else "none"

    def round(self, team: Team, job: Job, number: int) -> Outcome:
        if number != FORGETS:
            if (within := job.config.train.within) is not None:
                team.everyone.call(Rank.limit, job.source, within)
            outcome = go_on(team, job, number)
            # An adapter's rounds leave the rest of θ as the forgetting left it, which stands in round 1.
            alone = self.adapter(job.config, number) == "none"
            outcome.holds = Holds(sparse=False, alone=alone, goes_on=True)
            return outcome
        clock = Clock()
        team.everyone.call(Rank.keep)
        clock.lap("hold")
        old, *_ = team.everyone.call(
            Rank.fine_tune, job.forgotten, job.pad, number, "old", job.config.f_learning.epochs
        )
        refuse_lost_losses(number, old=old)
        clock.skip()
        team.everyone.call(Rank.shift, -job.config.f_learning.scale)
        clock.lap("apply")
        return Outcome({"old": old.losses}, {"old": old.tokens}, {"old": old.seconds} | clock.seconds, holds=THETA)
