"""One run of a name at a time in a cluster: the folder bears the numbers of the jobs that were at work in it, one after another.

Ray's control store puts a key only where there is none, so of several jobs that find the last holder dead one alone becomes
the next. Nothing is deleted: a key that was free again could be taken by a job that looked long ago.
"""

from itertools import count
from posixpath import normpath
from urllib.parse import parse_qs, urlsplit

import ray
from ray._private.state import jobs
from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put

from dft_cluster.errors import InputError
from dft_cluster.runs.storage import Storage

SPACE = b"dft-runs"


def hold(folder: Storage) -> None:
    """Refuses a folder in which another driver of this cluster is at work; one that has ended holds nothing."""
    own, place = ray.get_runtime_context().get_job_id(), address(folder)
    for turn in count():
        key = f"{place} {turn}".encode()
        taken = _internal_kv_put(key, own.encode(), overwrite=False, namespace=SPACE)
        if not taken:
            return
        holder = (_internal_kv_get(key, namespace=SPACE) or b"").decode()
        if holder == own:
            return
        if any(job["JobID"] == holder and not job["IsDead"] for job in jobs()):
            raise InputError(
                f"run.name: job {holder} of this cluster is at work in {folder.uri}; wait for it, stop it, or name another run"
            )


def address(folder: Storage) -> str:
    """The same for all ways to write a folder down."""
    if folder.local:
        return str(folder.local.resolve())
    server = parse_qs(urlsplit(folder.uri).query).get("endpoint_override", [""])[0]
    return f"{folder.system.type_name}:{server}/{normpath(folder.root)}"
