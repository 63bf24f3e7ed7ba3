"""Two alpaca-style files, one with the old outputs and one with the new, matched into pairs of answers."""

from collections import defaultdict

from dft_cluster.errors import InputError
from dft_cluster.facts.records import Record, as_records, load_json

Question = tuple[str, str]


def match(paths: str) -> tuple[list[Record], list[str]]:
    """Records with prompt, old and new, in the new file's order, and notes on what had no partner.

    Two records belong together when instruction and input are the same. Where the old file answers one
    question in several ways, the first is the old answer and the others are its other spellings.
    """
    old_path, new_path = _two(paths)
    old, new = _by_question(old_path), _by_question(new_path)
    both = [(record, key) for key, records in new.items() if key in old for record in records]
    both.sort(key=lambda pair: pair[0].number)
    if not both:
        raise InputError(f"{old_path}, {new_path}: no instruction and input stand in both files")
    notes = [*_unmatched(old, new, old_path, new_path), *_unmatched(new, old, new_path, old_path)]
    return as_records([(_answered(record, old[key]), record.where) for record, key in both], new_path), notes


def _answered(record: Record, olds: list[Record]) -> dict[str, object]:
    question = (record.text("instruction"), record.maybe("input"))
    return {
        "id": record.maybe("id") or str(record.number),
        "prompt": "\n".join(part for part in question if part),
        "old": [old.text("output") for old in olds],
        "new": record.text("output"),
    }


def _two(paths: str) -> tuple[str, str]:
    parts = [part.strip() for part in paths.split(",")]
    if len(parts) != 2 or not all(parts):
        raise InputError(f"{paths!r}: the format 'pairs' needs exactly two files, given as old.json,new.json")
    return parts[0], parts[1]


def _by_question(path: str) -> dict[Question, list[Record]]:
    found: defaultdict[Question, list[Record]] = defaultdict(list)
    for record in load_json(path):
        found[record.text("instruction"), record.maybe("input")].append(record)
    return dict(found)


def _unmatched(
    ours: dict[Question, list[Record]], theirs: dict[Question, list[Record]], path: str, other: str
) -> list[str]:
    alone = [record for question, records in ours.items() if question not in theirs for record in records]
    if not alone:
        return []
    first = alone[0].text("instruction")
    return [f"{path}: {len(alone)} records left out, as {other} has no partner to them, the first: {first!r}"]
