"""The results on disk: `comparison.md`, `.csv`, `.json` and `.html`, written anew after every cell."""

import csv
import io

from dft_cluster.comparison.page import render
from dft_cluster.comparison.reading import Json
from dft_cluster.comparison.tables import Table, flat, searches, tables
from dft_cluster.comparison.words import chosen, protocols, records, unfinished, unlike_costs
from dft_cluster.runs.storage import Storage


def write(room: Storage, found: Json) -> None:
    room.write_json("comparison.json", found)
    room.write("comparison.csv", as_csv(found).encode())
    room.write("comparison.md", markdown(found).encode())
    room.write("comparison.html", render(found).encode("utf-8", "replace"))


def as_csv(found: Json) -> str:
    """One row per cell, with its figures, their protocols and its costs."""
    out = io.StringIO(newline="")
    columns, rows = flat(found)
    csv.writer(out).writerows([columns, *rows])
    return out.getvalue()


def markdown(found: Json) -> str:
    parts = [f"# {found['name']}", records(found)]
    if found["search"]:
        parts.append("## Settings\n\n" + "\n".join(chosen(found)))
    for model in found["models"]:
        parts.append(f"## {model}")
        parts += [_table(table) for table in tables(found, model)]
        parts.append("\n".join(f"Protocol: {tag}." for tag in protocols(found, model)))
        parts += [f"{line}." for line in unlike_costs(found, model)]
    parts.append("\n".join(f"- **{name}**: {reason}" for name, reason in unfinished(found).items()))
    parts += ["## Trials" if found["search"] else "", *(_table(table) for table in searches(found))]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(table: Table) -> str:
    head = ["", *(" ".join(part for part in column if part) for column in table.columns)]
    lines = [head, ["---"] * len(head), *table.rows]
    body = "\n".join("| " + " | ".join(_plain(cell) for cell in line) + " |" for line in lines)
    return f"### {table.title}\n\n{table.note[0].upper()}{table.note[1:]}.\n\n{body}"


def _plain(cell: str) -> str:
    return " ".join(cell.split()).replace("|", "\\|")
