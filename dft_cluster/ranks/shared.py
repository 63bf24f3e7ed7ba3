"""The folder that the ranks and this process share: whether they see the same one, and what the ranks write to it."""

import secrets

from dft_cluster.ranks.rank import Rank
from dft_cluster.ranks.team import Group
from dft_cluster.runs.parts import Written
from dft_cluster.runs.storage import Storage

WORDS = ".seen"


def blind(ranks: Group, folder: Storage) -> list[int]:
    """The ranks that do not read there what is written here, or whose own word does not come back."""
    word = secrets.token_hex(8)
    folder.make(WORDS)
    folder.write(f"{WORDS}/driver", word.encode())
    answers = [f"{WORDS}/rank-{i}" for i in range(ranks.size)]
    saw = ranks.each(Rank.sees, [(folder.uri, f"{WORDS}/driver", word, answer) for answer in answers])
    back = [folder.exists(answer) and folder.read(answer).decode() == word for answer in answers]
    folder.remove(WORDS)
    return [i for i, both in enumerate(zip(saw, back, strict=True)) if not all(both)]


def write_parts(holders: Group, run: Storage, folder: str, *, sparse: bool, goes_on: bool) -> list[Written]:
    """Every rank that holds the new θ writes its own part of it (see `methods/job.py`, `Holds`)."""
    names = [f"{folder}/rank-{i:05d}.safetensors" for i in range(holders.size)]
    return holders.each(Rank.write_part, [(run.uri, name, sparse, goes_on) for name in names])
