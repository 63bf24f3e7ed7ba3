"""Starts a job's ranks on a Ray cluster, each group packed together, and ends them."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from dft_cluster.cluster.actors import ActorTeam, RankActor
from dft_cluster.config import Config
from dft_cluster.errors import InputError
from dft_cluster.methods.prepare import Prepared
from dft_cluster.ranks.assemble import assemble
from dft_cluster.ranks.rank import Source
from dft_cluster.runs.console import Console

PLACE_SECONDS = 60.0


def inside_a_job() -> bool:
    """Whether `ray job submit` started this process."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def connect(config: Config, console: Console) -> None:
    """Joins the cluster that is meant, or starts an embedded one."""
    if ray.is_initialized():
        return
    address = config.cluster.address
    if address == "auto":
        address = "auto" if inside_a_job() or os.environ.get("RAY_ADDRESS") else "local"
    console.phase("starting an embedded Ray" if address == "local" else f"joining the Ray cluster ({address})")
    options: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    stop = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False, **options)
        if stop is not None:
            signal.signal(signal.SIGTERM, stop)  # ray.init puts its own there
    except ConnectionError as error:
        raise InputError(f"cluster.address: no Ray cluster at {address}: {error}") from error


def shape(prepared: Prepared) -> tuple[int, int]:
    """(groups, ranks in each). A method without an old side takes all ranks as one group."""
    cluster = prepared.config.cluster
    return (cluster.groups, cluster.ranks_per_group) if prepared.method.contrasts else (1, prepared.config.world)


@contextmanager
def on_ray(prepared: Prepared, source: Source, console: Console) -> Iterator[ActorTeam]:
    """A team of actors with θ loaded."""
    connect(prepared.config, console)
    groups, ranks = shape(prepared)
    cpus, gpus = _share(prepared.config, groups * ranks)
    console.phase(f"starting {groups * ranks} ranks in {groups} group{'s'[: groups > 1]}")
    placed = [
        placement_group([{"CPU": cpus, **({"GPU": gpus} if gpus else {})}] * ranks, strategy="PACK")
        for _ in range(groups)
    ]
    team: ActorTeam | None = None
    try:
        for group in placed:
            if not group.wait(PLACE_SECONDS):
                raise InputError(
                    f"cluster: no room for {groups} group(s) of {ranks} rank(s) with {cpus:g} CPU and {gpus:g} GPU each within "
                    f"{PLACE_SECONDS:.0f} s; free now: {_free()}"
                )
        threads = prepared.config.cluster.threads or _threads(groups * ranks)
        team = ActorTeam(
            [_actors(group, ranks, cpus, gpus, threads) for group in placed],
            prepared.config.cluster.timeout,
            console.tick,
        )
        assemble(team, prepared.config, source, prepared.parameters, device="cuda" if gpus else "cpu", threads=threads)
        yield team
    finally:
        if team is not None:
            team.close()
        for group in placed:
            remove_placement_group(group)


def _share(config: Config, ranks: int) -> tuple[float, float]:
    """CPUs and GPUs of a rank. CPU ranks may share cores; GPU ranks may not outnumber GPUs."""
    there = ray.cluster_resources()
    have = there.get("GPU", 0.0)
    gpus = config.cluster.gpus_per_rank
    gpus = (1.0 if have else 0.0) if gpus is None else gpus
    if gpus * ranks > have:
        raise InputError(
            f"cluster.gpus_per_rank: {ranks} ranks with {gpus:g} GPU each need {gpus * ranks:g}, and the cluster has {have:g}; "
            "right would be fewer cluster.ranks_per_group, cluster.groups=1, or cluster.gpus_per_rank=0 to run on CPUs"
        )
    return min(1.0, int(1000 * there.get("CPU", 1.0) / ranks) / 1000), gpus


def _threads(ranks: int) -> int:
    """The cores of the smallest node, shared out as if the ranks were spread evenly."""
    nodes = [node["Resources"].get("CPU", 1.0) for node in ray.nodes() if node["Alive"]]
    return max(1, int(min(nodes) * len(nodes) // ranks))


def _actors(group: Any, ranks: int, cpus: float, gpus: float, threads: int) -> list[Any]:
    # Nothing secret stands here: a job's environment is visible to whoever sees the cluster's dashboard.
    quiet = {
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "passive",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONWARNINGS": "ignore::FutureWarning",
        "TORCHDYNAMO_DISABLE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        **({} if gpus else {"DS_ACCELERATOR": "cpu"}),
    }
    return [
        RankActor.options(  # type: ignore[attr-defined]
            num_cpus=cpus,
            num_gpus=gpus,
            runtime_env={"env_vars": quiet},
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=i),
        ).remote()
        for i in range(ranks)
    ]


def _free() -> str:
    return ", ".join(
        f"{amount:g} {name}" for name, amount in sorted(ray.available_resources().items()) if name in ("CPU", "GPU")
    )
