"""The warm-up: the model learns the old answers, and what comes out is the run's base."""

from dft_cluster.facts.pairs import given
from dft_cluster.methods.artifacts import write_base
from dft_cluster.methods.examine import Examiner
from dft_cluster.methods.job import THETA, refuse_broken_weights, refuse_lost_losses
from dft_cluster.methods.prepare import WARM_UP
from dft_cluster.methods.progress import Progress
from dft_cluster.methods.training_set import Drawn, examples
from dft_cluster.ranks.rank import Rank
from dft_cluster.ranks.shared import write_parts
from dft_cluster.ranks.team import Team

FOLDER = "checkpoints/warm-up"


def warm_up(progress: Progress, team: Team) -> None:
    """Teaches the old answers, and keeps what the user's own model said of the locality probes."""
    prepared, config, storage = progress.prepared, progress.config, progress.storage
    epochs = config.warmup.epochs
    progress.console.phase(f"warm-up: {epochs} epochs on the old answers")
    pairs = given(prepared.facts)
    examiner = Examiner(config, prepared.facts, pairs, prepared.layout)
    own = progress.counted(lambda: examiner.locality_said(team))
    taught = examples(pairs, "old", prepared.layout, Drawn())
    pad = prepared.layout.pad
    old, *_ = progress.counted(lambda: team.everyone.call(Rank.fine_tune, taught, pad, WARM_UP, "warm-up", epochs))
    refuse_lost_losses(WARM_UP, old=old)
    refuse_broken_weights(team, prepared.parameters, WARM_UP)
    storage.make(FOLDER)
    written = write_parts(team.new, storage, FOLDER, sparse=THETA.sparse, goes_on=THETA.goes_on)
    progress.console.phase("writing the warmed model to base/")
    write_base(prepared.folder, prepared.parameters, storage, [part.name for part in written], progress.scratch)
    storage.remove(FOLDER)
    progress.record.update_identity(base=progress.base)
    storage.write_json("base.json", {"own": own})
