"""What a patch file holds: where it comes from, what it lies on, and how much it changes where."""

import re
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from dft_cluster.patch import record
from dft_cluster.patch.reader import Patch
from dft_cluster.patch.stack import Link

Key = TypeVar("Key", bound=Hashable)

NO_LAYER = "-"
_LAYER = re.compile(r"(?:^|\.)([0-9]{1,6})\.")


@dataclass(frozen=True, slots=True)
class Count:
    changed: int
    elements: int

    def __add__(self, other: "Count") -> "Count":
        return Count(self.changed + other.changed, self.elements + other.elements)

    @property
    def share(self) -> float:
        return self.changed / self.elements if self.elements else 0.0


@dataclass(frozen=True, slots=True)
class Inspection:
    """A checked patch's metadata and counts; `grid` has one entry per layer and module kind of the base."""

    path: Path
    size: int
    checksum: str
    base_fingerprint: str
    result_fingerprint: str
    old_bits: bool
    metadata: dict[str, str]
    chain: tuple[Link, ...]
    """The patches below, lowest first, and this one at the end."""
    grid: dict[tuple[str, str], Count]

    @property
    def total(self) -> Count:
        return sum(self.grid.values(), Count(0, 0))

    @property
    def by_layer(self) -> dict[str, Count]:
        return _summed((layer, count) for (layer, _), count in self.grid.items())

    @property
    def by_kind(self) -> dict[str, Count]:
        return _summed((kind, count) for (_, kind), count in self.grid.items())


def inspect(patch: Path | str | Patch) -> Inspection:
    with Patch.opened(patch) as opened:
        cells = sorted(opened.records, key=lambda name: (_number(place(name)[0]), name))
        return Inspection(
            opened.path,
            opened.size,
            opened.checksum,
            opened.base_fingerprint,
            opened.result_fingerprint,
            opened.has_old_bits,
            record.described(opened.metadata),
            (*opened.below, opened.link()),
            _summed((place(n), Count(opened.records[n].changed, opened.records[n].numel)) for n in cells),
        )


def place(name: str) -> tuple[str, str]:
    """A tensor's layer and the kind of its module: the first number in its name, and what follows it.

    `model.layers.3.mlp.experts.7.up_proj.weight` is in layer 3, of the kind `mlp.experts.*.up_proj`.
    """
    found = _LAYER.search(name)
    layer, rest = (found[1], name[found.end() :]) if found else (NO_LAYER, name)
    return layer, re.sub(r"(^|\.)\d+(?=\.|$)", r"\1*", rest).removesuffix(".weight")


def lines(seen: Inspection) -> Iterator[str]:
    """The inspection as text."""
    yield f"patch       {seen.path}"
    yield f"size        {seen.size} bytes, {'with' if seen.old_bits else 'without'} old bits"
    yield f"checksum    {seen.checksum}"
    yield f"base        {seen.base_fingerprint}"
    yield f"result      {seen.result_fingerprint or 'not known (composed without its base)'}"
    for key, value in sorted(seen.metadata.items()):
        yield f"{printable(key):<11} {printable(value)}"
    for level, link in enumerate(seen.chain):
        yield f"{'chain' if level == 0 else '':<11} {level + 1}. {printable(str(link))}"
    yield f"changed     {_counted(seen.total)}"
    for title, counts in (("layer", seen.by_layer), ("module kind", seen.by_kind)):
        yield f"by {title}:"
        width = max(map(len, counts), default=0)
        for key, count in counts.items():
            yield f"  {printable(key):<{width}}  {_counted(count)}"


def _counted(count: Count) -> str:
    return f"{count.changed} of {count.elements} ({count.share:.4%})"


def printable(text: str) -> str:
    """Names and metadata are another's text: no control characters on the user's terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _number(layer: str) -> int:
    return -1 if layer == NO_LAYER else int(layer)


def _summed(counts: Iterable[tuple[Key, Count]]) -> dict[Key, Count]:
    found: dict[Key, Count] = {}
    for key, count in counts:
        found[key] = found.get(key, Count(0, 0)) + count
    return found
