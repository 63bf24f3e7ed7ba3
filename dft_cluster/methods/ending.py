"""A run's end: back to the round to keep, the patch, what the patched model says, the report."""

from pathlib import Path
from typing import Any

import torch

from dft_cluster.methods import finish
from dft_cluster.methods.rounds import Rounds
from dft_cluster.methods.stop import kept_round
from dft_cluster.patch.folder import Folder
from dft_cluster.ranks.rank import Rank, Source
from dft_cluster.runs.report import RunData, render


def end(rounds: Rounds, reason: str) -> dict[str, Any]:
    """Leaves patch and report, and returns the result line."""
    course, team, lines = rounds.course, rounds.team, rounds.record.rounds
    record, storage, console = course.record, course.storage, course.console
    kept = kept_round(lines, course.config)
    line = next(line for line in lines if line["round"] == kept)
    chain = record.checkpoints.chain(kept)
    if kept != lines[-1]["round"]:
        console.phase(f"going back to round {kept}, the one to keep")
        team.everyone.call(Rank.restore, course.source, storage.uri, chain, False)
    console.phase("making the patch")
    base = storage.fetch("base", course.scratch) if course.warm else course.prepared.folder
    metadata = finish.patch_metadata(course.config, record.identity, kept, line)
    patch = finish.make_patch(base, course.prepared.parameters, storage, chain, metadata, course.scratch)
    final = _final(rounds, line, patch, base)
    elapsed = course.elapsed()
    overhead = elapsed - course.spent_well
    result = {
        "stop_reason": reason,
        "rounds": lines[-1]["round"],
        "best_round": kept,
        "final": final,
        "seconds": course.earlier + elapsed,
        "overhead": {"seconds": overhead, "share": overhead / elapsed},
    }
    console.phase("writing the report")
    storage.write_json("answers.json", rounds.examiner.answers(rounds.texts))
    report = _report(rounds, result)
    course.tracker.finish(result, {"patch": patch} | ({"report": report} if report else {}))
    record.add(result)
    console.say(f"stopped: {reason}; kept round {kept}; {storage.uri}")
    return result


def _final(rounds: Rounds, line: dict[str, Any], patch: Path, base: Path) -> dict[str, Any]:
    """What the patch makes of the base, measured: exactly the model that is shipped."""
    course, team = rounds.course, rounds.team
    files = Folder(base)
    dtypes = {p.index: files.dtype(p.saved) for p in course.prepared.parameters}
    if course.config.run.export:
        course.console.phase("exporting the model")
        finish.export(patch, base, course.storage, course.scratch)
        team.everyone.call(Rank.load, Source(course.config.model, course.storage.uri, "model"))
    elif (
        set(dtypes.values()) == {torch.float32}
        and rounds.job.config.train.adapter == "none"
        and rounds.spoken_in == rounds.record.rounds[-1]["round"] == line["round"]
    ):
        # The files hold θ as it is, and this very θ was asked everything a moment ago (an adapter is yet to be merged).
        rounds.keep_scores("final")
        return {name: line[name] for name in line if name in rounds.measured}
    else:
        team.everyone.call(Rank.round_to, dtypes)
    figures, texts = course.useful(lambda: rounds.examiner.measure(team, decode=True))
    rounds.texts = texts or rounds.texts
    rounds.keep_scores("final")
    return {"round": line["round"], **figures}


def _report(rounds: Rounds, result: dict[str, Any]) -> Path | None:
    storage, record = rounds.storage, rounds.record
    answers, pairs = storage.read_json("answers.json"), storage.read_json("pairs.json")
    page = render(RunData.from_texts(record.identity, [*record.lines, result], answers, pairs))
    storage.write("report.html", page.encode())
    return storage.local / "report.html" if storage.local else None
