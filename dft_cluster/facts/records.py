"""A file's records as text, each knowing where it stands, so that every message can say so."""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dft_cluster.errors import InputError


@dataclass(frozen=True)
class Record:
    """One record: its fields, the place it stands at, its number in the file (from 1).

    `tally` is shared by all records of one reading: it counts what a reader left out, by what it was.
    """

    fields: Mapping[str, object]
    where: str
    number: int
    tally: Counter[str] = field(default_factory=Counter)

    def has(self, *names: str) -> bool:
        """Whether any of these fields is there; `null` counts as absent, as data sets fill gaps with it."""
        return any(self.fields.get(name) is not None for name in names)

    def texts(self, *names: str) -> tuple[str, ...]:
        """Every non-empty text of the first of these fields that is there, lists in lists laid flat."""
        for name in names:
            if self.has(name):
                return tuple(self._leaves(self.fields[name], name))
        return ()

    def some(self, *names: str) -> tuple[str, ...]:
        """Like `texts`, but there must be at least one."""
        found = self.texts(*names)
        if found:
            return found
        wanted = " or ".join(f"`{name}`" for name in names)
        if self.has(*names):
            raise InputError(f"{self.where}: the field {wanted} is empty; it needs a text")
        there = ", ".join(f"`{name}`" for name in self.fields) or "none"
        raise InputError(f"{self.where}: the field {wanted} is missing; the fields there are: {there}")

    def text(self, *names: str) -> str:
        """The first text of the first of these fields that is there; it must not be missing or empty."""
        return self.some(*names)[0]

    def maybe(self, *names: str) -> str:
        """Like `text`, but "" where there is none."""
        found = self.texts(*names)
        return found[0] if found else ""

    def inside(self, name: str) -> "Record":
        """The record that stands in this field; an absent one is an empty record."""
        value = self.fields.get(name)
        if value is None:
            value = {}
        if not isinstance(value, Mapping):
            raise InputError(f"{self.where}: the field `{name}` is {_kind(value)}; it needs an object")
        return Record(value, f"{self.where}, in `{name}`", self.number, self.tally)

    def note(self, what: str) -> None:
        """Count something that was left out of this record."""
        self.tally[what] += 1

    def _leaves(self, value: object, name: str) -> Iterable[str]:
        if isinstance(value, list | tuple):
            for item in value:
                yield from self._leaves(item, name)
        elif isinstance(value, str | int | float) and not isinstance(value, bool):
            text = str(value).strip()
            if any("\ud800" <= char <= "\udfff" for char in text):
                raise InputError(f"{self.where}: the field `{name}` holds a lone surrogate, half a character")
            if text:
                yield text
        elif value is not None:
            raise InputError(f"{self.where}: the field `{name}` holds {_kind(value)}; it needs text")


def load_json(path: str) -> list[Record]:
    """The records of a JSONL file, or of a JSON file that is one list."""
    return parse_json(read_text(path), Path(path).name)


def parse_json(text: str, name: str) -> list[Record]:
    """The records in this text; `name` is what the messages call it."""
    numbered: list[tuple[object, str]]
    if text.lstrip().startswith("["):
        values = _decode(text, name)
        assert isinstance(values, list)
        numbered = [(value, f"{name}, record {number}") for number, value in enumerate(values, start=1)]
    else:
        # not splitlines: a JSON text may hold U+2028 and its like unescaped
        lines = enumerate(text.split("\n"), start=1)
        filled = [(number, line) for number, line in lines if line.strip()]
        numbered = [(_decode(line, name, number), f"{name}, line {number}") for number, line in filled]
    return as_records(numbered, name)


def load_csv(path: str) -> list[Record]:
    """The rows of a CSV file with a header line, each a record of texts."""
    name = Path(path).name
    rows = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    numbered: list[tuple[object, str]] = []
    try:
        for row in rows:
            where = f"{name}, line {rows.line_num}"
            if None in row:
                header = ", ".join(rows.fieldnames or ())
                raise InputError(f"{where}: more cells than the header has ({header}); quote texts with commas")
            numbered.append((row, where))
    except csv.Error as error:
        # the DictReader's own count stops at the row before
        line = rows.reader.line_num
        raise InputError(f"{name}, line {line}: not readable as CSV ({error})") from error
    return as_records(numbered, name)


def as_records(numbered: Iterable[tuple[object, str]], name: str) -> list[Record]:
    """Decoded values with their places, as records that share one tally."""
    tally: Counter[str] = Counter()
    records = []
    for number, (value, where) in enumerate(numbered, start=1):
        if not isinstance(value, Mapping):
            raise InputError(f"{where}: a record must be an object with named fields, this is {_kind(value)}")
        records.append(Record(value, where, number, tally))
    if not records:
        raise InputError(f"{name}: there are no records in it")
    return records


def read_text(path: str) -> str:
    """A file's text: UTF-8, with or without a byte order mark."""
    try:
        raw = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable as a file ({error})") from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{Path(path).name}, line {line}: byte {raw[error.start]:#04x} is not UTF-8; save it as UTF-8"
        ) from error
    if not text.strip():
        raise InputError(f"{path}: the file is empty")
    return text


def _decode(text: str, name: str, line: int | None = None) -> object:
    """One JSON value, numbers kept as they are written: 1.50 stays "1.50". NaN is how some tables write a gap."""
    try:
        return json.loads(text, parse_int=str, parse_float=str, parse_constant=lambda _: None)
    except json.JSONDecodeError as error:
        place = f"line {line or error.lineno}, column {error.colno}"
        raise InputError(
            f"{name}, {place}: broken JSON ({error.msg}); wanted is one object a line, or one list of objects"
        ) from error
    except RecursionError as error:
        raise InputError(f"{name}, line {line or 1}: nested too deep to be a record") from error


def _kind(value: object) -> str:
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list | tuple):
        return "a list"
    return f"{value!r}"[:60]
