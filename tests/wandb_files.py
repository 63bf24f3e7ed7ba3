"""What stands in an offline W&B run: 32 KiB blocks of records behind a 7-byte header."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def records(folder: Path) -> Iterator[Any]:
    """Every record of the runs in a folder's `wandb/`, in the order of their segments."""
    import wandb
    from wandb.proto import wandb_internal_pb2 as pb

    wandb.teardown()  # where the run was this process's own: its file is whole then
    for file in sorted((folder / "wandb").glob("offline-run-*/run-*.wandb")):
        content, at, held = file.read_bytes(), 7, b""
        while at + 7 <= len(content):
            if 32768 - at % 32768 < 7:
                at += 32768 - at % 32768
                continue
            size, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
            assert at + 7 + size <= len(content), "cut short"
            held += content[at + 7 : at + 7 + size]
            at += 7 + size
            if kind in (1, 4):  # a whole record, or the last piece of one
                yield pb.Record.FromString(held)
                held = b""


def rows(found: list[Any]) -> list[dict[str, Any]]:
    """The history among these records."""
    return [
        {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
        for record in found
        if record.HasField("history")
    ]
