"""The best setting of every rule in `update_rules.csv`, by the comparisons' rule of choice.

    python -m benchmarks.update_rules_table [update_rules.csv]

Of the settings that were tried on all sets and reach 95 % of reliability (token, mean over the sets) the one with the highest
harmonic mean of generality and locality: on each data set, and, one setting for both, by the mean of the two harmonic means.
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
            tried = found[kind][tuple(row[name] for name in SETTING)]
            if all(other["set"] != row["set"] for other in tried):  # two parts of the trials have settings in common
                tried.append(row)
    return found


def mean(rows: list[Row], figure: str) -> float:
    return fmean(float(row[figure]) for row in rows)


def told(rows: list[Row]) -> str:
    values = {figure: [float(row[figure]) for row in rows] for figure in FIGURES}
    return " | ".join(f"{fmean(v):.1f}" + (f" ± {stdev(v):.1f}" if len(v) > 1 else "") for v in values.values())


def balance(rows: list[Row]) -> float:
    return harmonic_mean([mean(rows, figure) for figure in ("generality", "locality")])


def in_words(setting: tuple[str, ...]) -> str:
    return ", ".join(f"{name} {value}" for name, value in zip(SETTING, setting, strict=True) if value)


def whole(settings: dict[tuple[str, ...], list[Row]]) -> dict[tuple[str, ...], list[Row]]:
    """Those that were tried on all sets."""
    most = max(len(rows) for rows in settings.values())
    return {name: rows for name, rows in settings.items() if len(rows) == most}


def enough(settings: dict[tuple[str, ...], list[Row]]) -> dict[tuple[str, ...], list[Row]]:
    return {name: rows for name, rows in settings.items() if mean(rows, "reliability") >= 95}


def label_of(kind: tuple[str, ...]) -> str:
    return " ".join(part for part in kind[1:] if part and part != "plain")


def on_each(found: dict[tuple[str, ...], dict[tuple[str, ...], list[Row]]]) -> None:
    columns = ["data", "rule", "settings", "sets", *FIGURES, "the best"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for kind, settings in sorted(found.items()):
        tried = whole(settings)
        start = f"| {kind[0]} | {label_of(kind)} | {len(tried)} | {len(next(iter(tried.values())))} |"
        if good := enough(tried):
            best = max(good, key=lambda name: balance(good[name]))
            print(f"{start} {told(good[best])} | {in_words(best)} |")
        else:
            top = max(mean(rows, "reliability") for rows in tried.values())
            print(f"{start} at most {top:.1f} | – | – | – | – |")


def on_both(found: dict[tuple[str, ...], dict[tuple[str, ...], list[Row]]]) -> None:
    print("\n| rule | settings | zsre | counterfact | the best of both |\n|---|---|---|---|---|")
    for kind, settings in sorted(found.items()):
        if kind[0] != "counterfact" or ("zsre", *kind[1:]) not in found:
            continue
        other = enough(whole(found["zsre", *kind[1:]]))
        if both := enough(whole(settings)).keys() & other.keys():
            best = max(sorted(both), key=lambda name: balance(settings[name]) + balance(other[name]))
            figures = [
                " / ".join(f"{mean(rows[best], figure):.1f}" for figure in FIGURES[:3]) for rows in (other, settings)
            ]
            print(f"| {label_of(kind)} | {len(both)} | {' | '.join(figures)} | {in_words(best)} |")


def main() -> None:
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix("").with_name("update_rules.csv")
    with file.open(newline="") as stream:
        found = families(list(csv.DictReader(stream)))
    on_each(found)
    on_both(found)


if __name__ == "__main__":
    main()
