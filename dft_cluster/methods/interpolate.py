"""A part of the way to the fine-tuned model, round after round:

    θ ← θ + α·(FT{θ, K_new} − θ)

It knows nothing of the old answers and chooses no elements: what any choice of elements has to beat.
"""

from dft_cluster.methods.clock import Clock
from dft_cluster.methods.job import THETA, Job, OfTheWhole, Outcome, refuse_lost_losses
from dft_cluster.ranks.rank import Rank
from dft_cluster.ranks.team import Team


class Interpolate(OfTheWhole):
    def round(self, team: Team, job: Job, number: int) -> Outcome:
        clock = Clock()
        team.everyone.call(Rank.keep)
        clock.lap("hold")
        new, *_ = team.everyone.call(Rank.fine_tune, job.new, job.pad, number, "new")
        refuse_lost_losses(number, new=new)
        clock.skip()
        team.everyone.call(Rank.shift, job.config.interpolate.alpha)
        clock.lap("apply")
        return Outcome({"new": new.losses}, {"new": new.tokens}, {"new": new.seconds} | clock.seconds, holds=THETA)
