"""One run of a name at a time in a cluster: the folder bears the number of the job that is at work in it."""

import ray
from ray._private.state import jobs
from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put

from dft_cluster.errors import InputError

SPACE = b"dft-runs"


def hold(folder: str) -> None:
    """Refuses a folder in which another driver of this cluster is at work; one that has ended holds nothing."""
    own = ray.get_runtime_context().get_job_id()
    taken = _internal_kv_put(folder.encode(), own.encode(), overwrite=False, namespace=SPACE)
    if not taken:
        return
    other = (_internal_kv_get(folder.encode(), namespace=SPACE) or b"").decode()
    if other != own and any(job["JobID"] == other and not job["IsDead"] for job in jobs()):
        raise InputError(
            f"run.name: job {other} of this cluster is at work in {folder}; wait for it, stop it, or name another run"
        )
    _internal_kv_put(folder.encode(), own.encode(), overwrite=True, namespace=SPACE)
