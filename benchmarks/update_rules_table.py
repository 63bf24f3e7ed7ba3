"""The best setting of every rule in `update_rules.csv`, by the comparisons' rule of choice.

    python -m benchmarks.update_rules_table [update_rules.csv]

Of the settings that were tried on all sets and reach 95 % of reliability (token, mean over the sets) the one with the highest
harmonic mean of generality and locality.
"""

import csv
import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean, harmonic_mean, stdev

FIGURES = ("reliability", "generality", "locality", "old")
SETTING = ("lr", "epochs", "top", "scale", "rest", "outside", "round")
Row = dict[str, str]


def families(rows: list[Row]) -> dict[tuple[str, ...], dict[tuple[str, ...], list[Row]]]:
    """By data, training set, rule, mask and ranking, and whether in rounds: the settings, each with a row per set."""
    found: dict[tuple[str, ...], dict[tuple[str, ...], list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["rule"] != "original":
            kind = (row["data"], row["train"], row["rule"], row["mask"], row["by"], "rounds" if row["round"] else "")
            found[kind][tuple(row[name] for name in SETTING)].append(row)
    return found


def mean(rows: list[Row], figure: str) -> float:
    return fmean(float(row[figure]) for row in rows)


def told(rows: list[Row]) -> str:
    values = {figure: [float(row[figure]) for row in rows] for figure in FIGURES}
    return " | ".join(f"{fmean(v):.1f}" + (f" ± {stdev(v):.1f}" if len(v) > 1 else "") for v in values.values())


def main() -> None:
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix("").with_name("update_rules.csv")
    with file.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    columns = ["data", "rule", "settings", "sets", *FIGURES, "the best"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for kind, settings in sorted(families(rows).items()):
        most = max(len(rows) for rows in settings.values())
        whole = {name: rows for name, rows in settings.items() if len(rows) == most}
        enough = {name: rows for name, rows in whole.items() if mean(rows, "reliability") >= 95}
        label = " ".join(part for part in kind[1:] if part and part != "plain")
        if not enough:
            top = max(mean(rows, "reliability") for rows in whole.values())
            print(f"| {kind[0]} | {label} | {len(whole)} | {most} | at most {top:.1f} | – | – | – | – |")
            continue
        best = max(enough, key=lambda name: harmonic_mean([mean(enough[name], f) for f in ("generality", "locality")]))
        what = ", ".join(f"{name} {value}" for name, value in zip(SETTING, best, strict=True) if value)
        print(f"| {kind[0]} | {label} | {len(whole)} | {most} | {told(enough[best])} | {what} |")


if __name__ == "__main__":
    main()
