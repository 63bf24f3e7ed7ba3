"""Records of a data set on the Hugging Face hub, or of anything else that `datasets` loads by name."""

from collections.abc import Mapping

from dft_cluster.errors import InputError
from dft_cluster.facts.records import Record, as_records


def load(name: str, file: str | None, split: str) -> list[Record]:
    """One split's records; `file` is a path within the data set (None: what the data set itself declares)."""
    # here and not above: `datasets` takes seconds to import and only this form needs it
    import datasets

    try:
        rows = datasets.load_dataset(name, data_files=file, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        within = f", file {file!r}" if file else ""
        raise InputError(f"data set {name!r}{within}, split {split!r}: not loadable ({error})") from error
    assert isinstance(rows, datasets.Dataset)
    return as_records(((_bare(row), f"{name}, record {n}") for n, row in enumerate(rows, start=1)), name)


def _bare(row: object) -> object:
    """A row without the fields that only other rows have: `datasets` fills these with null."""
    if isinstance(row, Mapping):
        return {name: _bare(value) for name, value in row.items() if value is not None}
    return [_bare(value) for value in row] if isinstance(row, list) else row
