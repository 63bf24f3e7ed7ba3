"""Plain fine-tuning on the new answers: θ ← FT{θ, K_new}, by all ranks in one group.

A round is `train.epochs` epochs; the optimizer goes on from round to round, so that n rounds are one
fine-tune of n times as many epochs, looked at in between. With `train.adapter=lora` (method.name=lora) the same is done
to low-rank products beside the weights (Hu et al. 2022), which are merged at the end.
"""

from dft_cluster.methods.job import TRAINING, Job, OfTheWhole, Outcome, refuse_lost_losses
from dft_cluster.ranks.rank import Rank
from dft_cluster.ranks.team import Team


class Full(OfTheWhole):
    def round(self, team: Team, job: Job, number: int) -> Outcome:
        return go_on(team, job, number)


def go_on(team: Team, job: Job, number: int) -> Outcome:
    """Some more epochs of one fine-tune."""
    new, *_ = team.everyone.call(Rank.fine_tune, job.new, job.pad, number, "new")
    refuse_lost_losses(number, new=new)
    return Outcome({"new": new.losses}, {"new": new.tokens}, {"new": new.seconds}, holds=TRAINING)
