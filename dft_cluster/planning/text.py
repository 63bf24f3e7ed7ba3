"""A plan in words and a table, for a terminal."""

from typing import TYPE_CHECKING

from dft_cluster.planning.ledger import PARTS, Moment
from dft_cluster.planning.memory import GIB

if TYPE_CHECKING:
    from dft_cluster.planning.plan import Plan


def written(plan: "Plan") -> str:
    asked = plan.asked
    config, model = asked.config, asked.model
    groups = f"2 groups of {asked.world}" if asked.paired else f"1 group of {asked.world}"
    shapes = asked.shapes
    title = (
        f"plan: {config.method.name} on {model.name}: {model.elements:,} elements, {config.train.precision}, "
        f"ZeRO-{config.train.zero_stage}, offload {config.train.offload}, adapter {config.train.adapter}, "
        f"{groups} rank{'s'[: asked.world > 1]} on {asked.device}"
    )
    lines = [title]
    if shapes:
        tokens, logits = max(shapes, key=lambda s: s.tokens), max(shapes, key=lambda s: s.answers)
        lines.append(
            f"a rank takes at most {tokens.rows} x {tokens.width} tokens through the model at once (train.batch="
            f"{config.train.batch}, padding counted), and asks for the logits of {logits.answers} answer tokens"
        )
    lines += ["", f"memory of a rank at its fullest, GiB ({plan.seat})", *_table(plan)]
    if asked.device == "cpu":
        lines.append("  (what a step frees counts until the fine-tune's end: training keeps it for the next step)")
    lines += ["", *_moved(plan), "", *_written(plan), ""]
    lines.append(
        f"seconds per round: {plan.seconds.text() if plan.seconds else 'not timed; --calibrate takes a few steps'}"
    )
    lines += ["", plan.groups, "", f"there: {plan.there}", plan.fit.text()]
    if plan.advice is not None:
        lines += _advised(plan)
    return "\n".join([*lines, *(f"note: {note}" for note in plan.notes)])


def _table(plan: "Plan") -> list[str]:
    columns: list[tuple[str, Moment]] = []
    for one in plan.memories:
        side = "" if one.role == "rank" else f"{one.role} "
        if plan.asked.device == "cuda":
            columns.append((f"{side}device", one.device))
        columns.append((f"{side}host", one.host))
    held = [part for part in PARTS if any(part in moment.parts for _, moment in columns)]
    rows = [f"  {'':24}" + "".join(f"{name:>12}" for name, _ in columns)]
    rows += [f"  {part:24}" + "".join(_cell(moment.parts.get(part, 0)) for _, moment in columns) for part in held]
    rows.append(f"  {'in all':24}" + "".join(_cell(moment.total) for _, moment in columns))
    return rows + [f"  {name} at its fullest: {moment.phase}" for name, moment in columns]


def _cell(size: int) -> str:
    return f"{size / GIB:12.2f}" if size else f"{'-':>12}"


def _moved(plan: "Plan") -> list[str]:
    moved = plan.traffic
    if not moved.steps:
        return ["moved per round: nothing by ZeRO, as no step is taken"]
    steps = f"{moved.step / GIB:.3f} GiB a step from each rank, {moved.round / GIB:.2f} GiB in {moved.steps} steps"
    lines = [f"moved per round: ZeRO sends {steps}"]
    if moved.deltas:
        lines.append(
            f"  between the groups {moved.deltas / GIB:.2f} GiB of deltas to the new side, at most {moved.core / GIB:.2f} GiB of "
            "the core back"
        )
    return lines


def _written(plan: "Plan") -> list[str]:
    disk = plan.disk
    lines = [
        f"disk: {disk.checkpoint / GIB:.2f} GiB a round at most, {disk.total / GIB:.2f} GiB at the end of {disk.rounds} rounds"
    ]
    parts = [
        ("patch with its old bits, at most", disk.patch),
        ("base/ after the warm-up", disk.base),
        ("model/", disk.export),
    ]
    return lines + [f"  of this {name} {size / GIB:.2f} GiB" for name, size in parts if size]


def _advised(plan: "Plan") -> list[str]:
    assert plan.advice is not None
    way = plan.advice.way
    first = f"change {' and '.join(way)}" if way else "no setting is enough: it takes more or larger devices"
    if plan.fit.missing_devices:
        first = "fewer cluster.ranks_per_group are needed, or more devices"
    return [f"  {first}; one by one:", *(f"  - {change.text()}" for change in plan.advice.changes)]
