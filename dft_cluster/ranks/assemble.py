"""Makes worlds out of ranks: who sits where, which port, which pairs meet."""

from collections.abc import Sequence

from dft_cluster.config import Config
from dft_cluster.models.structure import Parameter
from dft_cluster.ranks.rank import Rank, Source
from dft_cluster.ranks.team import Pending, Team
from dft_cluster.training.engine import Place


def assemble(
    team: Team,
    config: Config,
    source: Source,
    parameters: Sequence[Parameter],
    standing: Sequence[Parameter] = (),
    *,
    device: str,
    threads: int | None,
) -> None:
    """Every group becomes a world of its own with θ loaded; equal ranks of two groups are joined in pairs."""
    groups = [team.old, team.new] if team.paired else [team.everyone]
    building: list[Pending[int]] = []
    for group in groups:
        address, port = group.call(Rank.where)[0]
        places = [Place(rank, group.size, address, port, device, threads) for rank in range(group.size)]
        building.append(
            group.start_each(Rank.build, [(place, source, config, parameters, standing) for place in places])
        )
    for pending in building:
        pending.wait()
    if config.train.precision == "bf16" and device == "cpu" and not all(team.everyone.call(Rank.multiplies_bf16)):
        team.notes.append(
            "train.precision: bf16 on CPUs that have no instructions for it is emulated, and several times slower than fp32; "
            "right would be train.precision=fp32"
        )
    if not team.paired:
        return
    meetings = team.old.call(Rank.where)
    waiting = [
        group.start_each(Rank.meet, [(f"pair-{i}", *at, side, config.cluster.timeout) for i, at in enumerate(meetings)])
        for side, group in enumerate(groups)
    ]
    for meeting in waiting:
        meeting.wait()
