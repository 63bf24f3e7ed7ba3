"""`--plan [--calibrate]`: the plan of a prepared job as text."""

from dataclasses import replace

from dft_cluster.config import ONE_ROUND
from dft_cluster.errors import InputError
from dft_cluster.methods.prepare import Prepared
from dft_cluster.methods.run import Launch
from dft_cluster.planning.calibrate import calibrate
from dft_cluster.planning.capacity import Capacity
from dft_cluster.planning.plan import asked_probes, plan, training_sets
from dft_cluster.ranks.rank import Source
from dft_cluster.runs.console import Console


def plan_command(
    prepared: Prepared, calibrated: bool, launch: Launch, console: Console, there: Capacity | None = None
) -> str:
    """Starts nothing, unless it is to be calibrated: then the ranks of round 1, for a few steps. Nothing is written."""
    if calibrated and prepared.config.method.name in ONE_ROUND:
        raise InputError(f"--calibrate: times training steps, and method.name={prepared.config.method.name} has none")
    made = plan(prepared, there)
    if not calibrated:
        return made.text()
    seat = prepared.seat(1)
    with launch(seat, Source(prepared.config.model), console) as team:
        if made.asked.paired and not team.paired:  # the cluster had room for no more
            made = plan(replace(prepared, config=prepared.config.in_groups(1)), there)
        console.phase("timing a few steps")
        seconds = calibrate(seat, team, training_sets(seat), asked_probes(seat), made.traffic.steps)
    return made.timed(seconds).text()
