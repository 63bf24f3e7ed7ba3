"""Constrained fine-tuning (Zhu et al. 2020): after every step each weight is put back to within ε of where it began,

    min L(θ)  such that  ‖θ − θ₀‖_∞ ≤ ε

on all weights, or on the MLP down-projections of `method.layers` alone (ROME and MEMIT compare with one layer, ε = 5e-4 and
5e-5). The bound is on the fp32 masters: rounded to the file's dtype, a weight may lie up to half a unit in its last place
outside, or stay as it was.
"""

from collections.abc import Sequence
from pathlib import Path

from dft_cluster.config import Config
from dft_cluster.errors import InputError
from dft_cluster.methods.full import go_on
from dft_cluster.methods.job import Job, OfTheWhole, Outcome
from dft_cluster.models.mlp import down_projections
from dft_cluster.models.structure import Parameter, skeleton
from dft_cluster.ranks.rank import Rank
from dft_cluster.ranks.team import Team


class FtC(OfTheWhole):
    def weights(self, config: Config, folder: Path, parameters: Sequence[Parameter]) -> Sequence[Parameter]:
        layers = config.method.layers
        if layers == "trace":
            raise InputError("method.layers: trace goes with rome and memit; right would be all, or a list of layers")
        if isinstance(layers, str):
            return parameters
        projections = down_projections(skeleton(folder, config.model.trust_remote_code))
        outside = [layer for layer in layers if layer >= len(projections)]
        if outside or not layers:
            raise InputError(
                f"method.layers: {list(layers)} of a model whose layers are 0 to {len(projections) - 1}; "
                "right would be one or more of these"
            )
        names = {projections[layer].weight for layer in layers}
        return [p for p in parameters if p.name in names]

    def round(self, team: Team, job: Job, number: int) -> Outcome:
        team.everyone.call(Rank.limit, job.source, job.config.ft_c.epsilon)
        return go_on(team, job, number)
