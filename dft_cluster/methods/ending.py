"""A run's end: back to the round to keep, the patch, what the patched model says, the report."""

from pathlib import Path
from typing import Any

import torch

from dft_cluster.methods.artifacts import export, make_patch, patch_metadata
from dft_cluster.methods.rounds import Rounds
from dft_cluster.methods.stop import kept_round
from dft_cluster.patch.folder import Folder
from dft_cluster.ranks.rank import Rank, Source
from dft_cluster.runs.report import RunData, render


def end(rounds: Rounds, reason: str) -> dict[str, Any]:
    """Leaves patch and report, and returns the result line."""
    progress, team, lines = rounds.progress, rounds.team, rounds.record.rounds
    record, storage, console = progress.record, progress.storage, progress.console
    kept = kept_round(lines, progress.config)
    line = next(line for line in lines if line["round"] == kept)
    chain = record.checkpoints.chain(kept)
    if kept != lines[-1]["round"]:
        console.phase(f"going back to round {kept}, the one to keep")
        team.everyone.call(Rank.restore, progress.source, storage.uri, chain, False)
    console.phase("making the patch")
    base = storage.fetch("base", progress.scratch) if progress.warm else progress.prepared.folder
    metadata = patch_metadata(progress.config, record.identity, kept, line)
    patch = make_patch(base, progress.prepared.parameters, storage, chain, metadata, progress.scratch)
    final, texts = _final(rounds, line, patch, base)
    elapsed = progress.elapsed()
    overhead = elapsed - progress.useful_seconds
    result = {
        "stop_reason": reason,
        "rounds": lines[-1]["round"],
        "best_round": kept,
        "final": final,
        "seconds": progress.earlier + elapsed,
        "overhead": {"seconds": overhead, "share": overhead / elapsed},
    }
    console.phase("writing the report")
    storage.write_json("answers.json", rounds.examiner.answers(texts))
    report = _report(rounds, result)
    progress.track().finish(result, {"patch": patch} | ({"report": report} if report else {}))
    record.add(result)
    console.say(f"stopped: {reason}; kept round {kept}; {storage.uri}")
    return result


def _final(rounds: Rounds, line: dict[str, Any], patch: Path, base: Path) -> tuple[dict[str, Any], dict[int, str]]:
    """What the patch makes of the base, measured, and what it said: exactly the model that is shipped."""
    progress, team = rounds.progress, rounds.team
    files = Folder(base)
    dtypes = {p.index: files.dtype(p.saved) for p in progress.prepared.parameters}
    if progress.config.run.export:
        progress.console.phase("exporting the model")
        export(patch, base, progress.storage, progress.scratch)
        team.everyone.call(Rank.load, Source(progress.config.model, progress.storage.uri, "model"))
    elif (
        set(dtypes.values()) == {torch.float32}
        and rounds.job.config.train.adapter == "none"
        and rounds.spoke[0] == rounds.record.rounds[-1]["round"] == line["round"]
    ):
        # The files hold θ as it is, and this very θ was asked everything a moment ago (an adapter is yet to be merged).
        rounds.keep_scores("final")
        return {name: line[name] for name in line if name in rounds.spoke[1]}, rounds.texts
    else:
        team.everyone.call(Rank.round_to, dtypes)
    figures, texts = progress.counted(lambda: rounds.examiner.measure(team, decode=True))
    rounds.keep_scores("final")
    return {"round": line["round"], **figures}, texts


def _report(rounds: Rounds, result: dict[str, Any]) -> Path | None:
    """Writes report.html; returns its local path, where it has one."""
    storage, record = rounds.storage, rounds.record
    answers, pairs = storage.read_json("answers.json"), storage.read_json("pairs.json")
    page = render(RunData.from_texts(record.identity, [*record.lines, result], answers, pairs))
    storage.write("report.html", page.encode())
    return storage.local / "report.html" if storage.local else None
