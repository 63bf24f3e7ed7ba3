"""The warm-up: the model learns the old answers, and what comes out is the run's base."""

from dft_cluster.facts.pairs import given
from dft_cluster.methods import finish
from dft_cluster.methods.course import Course
from dft_cluster.methods.examine import Examiner
from dft_cluster.methods.training_set import Drawn, examples
from dft_cluster.ranks.rank import Rank
from dft_cluster.ranks.shared import write_parts
from dft_cluster.ranks.team import Team


def warm_up(course: Course, team: Team) -> None:
    """Teaches the old answers, and keeps what the user's own model said of the locality probes."""
    prepared, config, storage = course.prepared, course.config, course.storage
    epochs = config.warmup.epochs
    course.console.phase(f"warm-up: {epochs} epochs on the old answers")
    pairs = given(prepared.facts)
    examiner = Examiner(config, prepared.facts, pairs, prepared.layout)
    own = course.useful(lambda: examiner.locality_said(team))
    taught = examples(pairs, "old", prepared.layout, Drawn())
    course.useful(lambda: team.everyone.call(Rank.fine_tune, taught, prepared.layout.pad, 0, "warm-up", epochs))
    storage.make("checkpoints/warm-up")
    written = write_parts(team.new, storage, "checkpoints/warm-up", sparse=False, goes_on=False)
    course.console.phase("writing the warmed model to base/")
    finish.write_base(prepared.folder, prepared.parameters, storage, [p.name for p in written], course.scratch)
    storage.remove("checkpoints/warm-up")
    course.record.update_identity(base=course.base)
    storage.write_json("base.json", {"own": own})
