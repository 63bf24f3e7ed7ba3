"""What a comparison says in sentences: its records, its choices, what is missing."""

from dft_cluster.comparison.reading import Json
from dft_cluster.comparison.tables import spell


def records(found: Json) -> str:
    """Which records were used, by data set."""
    return "\n".join(
        f"- {label}: {one['facts']} facts of `{one['path']}`, {one['rephrases']} rephrases, {one['locality']} locality probes, "
        f"fingerprint {one['fingerprint'][:16]}{''.join(f'; {note}' for note in one['left_out'])}"
        for label, one in found["records"].items()
    )


def chosen(found: Json) -> list[str]:
    """The rule, the share, and what was chosen for every method."""
    search = found["search"]
    share = search["share"]
    budget = f"{share['trials']} trials and {share['device_seconds']:g} device-seconds"
    said = [f"{search['rule']} Every method: {budget}, on development facts that are not reported.", ""]
    for name, one in search["searches"].items():
        setting = "none, no trial came to an end" if one["chosen"] is None else spell(one["chosen"])
        said.append(f"- {name}: {setting if one['ended'] else 'under way'} ({len(one['trials'])} trial runs)")
    said += [f"- {method}: the setting of {other}" for method, other in search["like"].items()]
    searched = {name.rpartition(".")[2] for name in search["searches"]} | set(search["like"])
    said += [f"- {method}: as configured, not searched" for method in found["methods"] if method not in searched]
    return said


def protocols(found: Json, model: str) -> list[str]:
    tags = [tag for one in found["summary"] if one["model"] == model for tag in one["protocols"]]
    return list(dict.fromkeys(tags))


def unlike_costs(found: Json, model: str) -> list[str]:
    """Where the costs of one table come from runs with other equipment."""
    said = []
    for data in found["data"]:
        cells = [
            cell for cell in found["cells"] if (cell["model"], cell["data"]) == (model, data) and "equipment" in cell
        ]
        runs = {
            kind: ", ".join(f"{cell['method']}.{cell['seed']}" for cell in cells if cell["equipment"] == kind)
            for kind in dict.fromkeys(cell["equipment"] for cell in cells)
        }
        if len(runs) > 1:
            listed = "; ".join(f"{names}: {kind}" for kind, names in runs.items())
            said.append(f"The costs on {data} are no measure of one another: {listed}")
    return said


def unfinished(found: Json) -> dict[str, str]:
    """Cells that failed, each with the reason, and how many are not run yet."""
    failed = {cell["name"]: f"failed: {cell['reason']}" for cell in found["cells"] if cell["status"] == "failed"}
    waiting = sum(cell["status"] == "waiting" for cell in found["cells"])
    return failed | ({"not run yet": f"{waiting} of {len(found['cells'])} runs"} if waiting else {})
