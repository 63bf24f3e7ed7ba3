"""Which patches a model folder carries: a small file beside its weights, and in patches made on top."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from dft_cluster.errors import InputError

RECORD = "dft_patches.json"


@dataclass(frozen=True, slots=True)
class Link:
    """One patch of a stack; its checksum is its name."""

    checksum: str
    base_fingerprint: str
    result_fingerprint: str
    method: str

    def __str__(self) -> str:
        return f"{self.checksum[:12]} ({self.method or 'unnamed'})"


def dump(links: Iterable[Link]) -> str:
    return json.dumps([asdict(link) for link in links])


def parse(text: str | bytes, where: str) -> tuple[Link, ...]:
    """The links, lowest first."""
    try:
        links = tuple(Link(**fields_of_link) for fields_of_link in json.loads(text))
        if not all(isinstance(getattr(link, field.name), str) for link in links for field in fields(Link)):
            raise TypeError("a field is no text")
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{where} is not a list of patches: {error!r}") from error
    return links


def carried(folder: Path) -> tuple[Link, ...]:
    """What the folder says has been applied to it, lowest first."""
    record = folder / RECORD
    return parse(record.read_bytes(), str(record)) if record.exists() else ()


def below(links: Sequence[Link], base_fingerprint: str) -> tuple[Link, ...]:
    """The stack that ends in `base_fingerprint`: nothing if the weights changed after the list."""
    for end in range(len(links), 0, -1):
        if links[end - 1].result_fingerprint == base_fingerprint:
            return tuple(links[:end])
    return ()


def write(folder: Path, links: Sequence[Link]) -> None:
    if links:
        (folder / RECORD).write_text(dump(links) + "\n")
