"""Starts a job's ranks on a Ray cluster, each group packed together, and ends them."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from dft_cluster.cluster.actors import ActorTeam, RankActor
from dft_cluster.cluster.lock import hold
from dft_cluster.cluster.place import Need, Node, Strategy, arrange, fits, holds
from dft_cluster.cluster.secrets import VARIABLE
from dft_cluster.config import Config
from dft_cluster.errors import InputError
from dft_cluster.methods.prepare import Prepared
from dft_cluster.ranks.assemble import assemble
from dft_cluster.ranks.rank import Source
from dft_cluster.ranks.team import LostRankError
from dft_cluster.runs.console import Console
from dft_cluster.runs.storage import Storage

PLACE_SECONDS = 60.0
SETTLE_SECONDS = 5.0
WAIT_POLL = 5.0


def inside_a_job() -> bool:
    """Whether `ray job submit` started this process."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def meant(config: Config) -> bool:
    """Whether the config, or where it is run, means a cluster that is there already."""
    if config.cluster.address == "auto":
        return inside_a_job() or bool(os.environ.get("RAY_ADDRESS"))
    return config.cluster.address != "local"


def connect(config: Config, console: Console) -> None:
    """Joins the cluster that is meant, or starts an embedded one."""
    if ray.is_initialized():
        return
    address = config.cluster.address if meant(config) else "local"
    jobs = os.environ.get("RAY_ADDRESS", "")
    if address == "auto" and "://" in jobs and not jobs.startswith("ray://"):
        raise InputError(
            f"RAY_ADDRESS={jobs} is where jobs are submitted, and no cluster to join from here; right would be "
            "`ray job submit … -- python …` for this same line, or `env -u RAY_ADDRESS python …` for a Ray of its own"
        )
    console.phase("starting an embedded Ray" if address == "local" else f"joining the Ray cluster ({address})")
    options: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    stop = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False, **options)
        if stop is not None:
            signal.signal(signal.SIGTERM, stop)  # ray.init puts its own there
    except (ConnectionError, ValueError) as error:
        raise InputError(f"cluster.address: no Ray cluster at {address}: {error}") from error


def settled(config: Config) -> tuple[Config, list[str]]:
    """With `cluster.groups` where it was left open: two, or one if the cluster has room for no more and none is waited for."""
    cluster = config.cluster
    if cluster.groups is not None:
        return config, []
    if cluster.wait or _held(config, config.world) or not _held(config, cluster.ranks_per_group):
        return config.in_groups(2), []
    note = f"the cluster has room for one group of ranks alone ({_told()}): went on with that (cluster.groups=1)"
    return config.in_groups(1), [note]


def shape(config: Config, contrasts: bool) -> tuple[int, int]:
    """(groups, ranks in each). A method without an old side takes all ranks as one group."""
    return (config.groups, config.cluster.ranks_per_group) if contrasts else (1, config.world)


@contextmanager
def on_ray(prepared: Prepared, source: Source, console: Console, kind: Any = RankActor) -> Iterator[ActorTeam]:
    """A team of actors with θ loaded."""
    connect(prepared.config, console)
    hold(Storage(prepared.config.run.dir).below(prepared.config.run.name))
    config, notes = settled(prepared.config)
    groups, ranks, need, more = room(config, *shape(config, prepared.method.contrasts), console)
    given = need.given() | {"groups": config.groups}
    try:
        with ranks_on(config, groups, ranks, need, console, kind) as team:
            team.given = given
            team.notes += [*notes, *more]
            assemble(
                team, config, source, prepared.parameters, prepared.standing,
                device="cuda" if need.gpus else "cpu", threads=need.threads,
            )  # fmt: skip
            yield team
    except LostRankError as lost:
        lost.given = given
        raise


@contextmanager
def ranks_on(
    config: Config, groups: int, ranks: int, need: Need, console: Console, kind: Any = RankActor
) -> Iterator[ActorTeam]:
    """Actors in their places, each with an empty rank."""
    console.phase(f"starting {groups * ranks} ranks in {groups} group{'s'[: groups > 1]}")
    strategies = _arranged(groups, ranks, need)
    placed = [placement_group([need.bundle()] * ranks, strategy=strategy) for strategy in strategies]
    team: ActorTeam | None = None
    try:
        for group in placed:
            _await(group, config, groups * ranks, need, console)
        actors = [_actors(kind, group, ranks, need, config.cluster.secrets) for group in placed]
        team = ActorTeam(actors, config.cluster.timeout, console.tick, config.cluster.hang)
        team.given = need.given()
        if "PACK" in strategies and len(_totals()) > 1:
            team.notes.append(
                f"no node holds a group of {ranks} ranks with {need} each: spread over several, which is slower"
            )
        team.know()
        yield team
    finally:
        if team is not None:
            team.close()
        for group in placed:
            remove_placement_group(group)


def _arranged(groups: int, ranks: int, need: Need) -> list[Strategy]:
    """By what is free. Ray hears a moment late what an earlier team has given back: until then a group is not spread that need
    not be."""
    until = time.monotonic() + SETTLE_SECONDS
    while "PACK" in (found := arrange(_nodes(), groups, ranks, need)):
        if "PACK" in arrange(_totals(), groups, ranks, need) or time.monotonic() > until:
            break
        time.sleep(SETTLE_SECONDS / 20)
    return found


def _await(group: Any, config: Config, ranks: int, need: Need, console: Console) -> None:
    """Until a group has its place. What the cluster has in all may be taken by others, or may be gone a moment later."""
    until = time.monotonic() + max(PLACE_SECONDS, config.cluster.wait)
    while not group.wait(WAIT_POLL):
        there, left = holds(_totals(), need), until - time.monotonic()
        if there < ranks:
            raise LostRankError(f"a node went away while {ranks} ranks were being placed: there is room for {there}")
        if left <= 0:
            raise InputError(
                f"cluster: no room for {ranks} rank(s) with {need} each within {max(PLACE_SECONDS, config.cluster.wait):.0f} s; "
                f"free now: {_free()}"
            )
        console.phase(f"waiting for room, others are using it: free now {_free()}; {left:.0f} s left")


def room(config: Config, groups: int, ranks: int, console: Console) -> tuple[int, int, Need, list[str]]:
    """Groups, ranks in each and what one needs: as asked for, once the cluster can hold it; or fewer, where that is allowed.

    A cluster that is too small is refused at once, or waited for.
    """
    settings = config.cluster
    until = time.monotonic() + settings.wait
    wanted: list[Any] = []
    try:
        while (there := holds(_totals(), need := _share(config, groups * ranks))) < groups * ranks:
            left = until - time.monotonic()
            if left <= 0:
                break
            console.phase(f"waiting for room: {_missing(groups, ranks, need, there)}; {left:.0f} s left (cluster.wait)")
            # What cannot be placed yet is what an autoscaler brings nodes for; it ends with this job, however that ends.
            wanted = wanted or [placement_group([need.bundle()] * ranks, strategy="PACK") for _ in range(groups)]
            time.sleep(min(left, WAIT_POLL))
    finally:
        for group in wanted:
            remove_placement_group(group)
    if there >= groups * ranks:
        on_cpus = settings.wait and settings.gpus_per_rank is None and not need.gpus
        notes = (
            ["no GPU is in the cluster, and none is waited for: on CPUs (cluster.gpus_per_rank=1 waits)"]
            if on_cpus
            else []
        )
        return groups, ranks, _with_threads(config, groups * ranks, need), notes
    missing = _missing(groups, ranks, need, there)
    if not settings.shrink or there < groups:
        raise InputError(
            f"cluster: {missing}; right would be a smaller cluster.ranks_per_group, cluster.groups=1, cluster.gpus_per_rank=0 to "
            "run on CPUs, cluster.cpus_per_rank to share them, or cluster.wait=SECONDS for an autoscaler"
        )
    fewer = there // groups
    need = _with_threads(config, groups * fewer, need)
    return groups, fewer, need, [f"{missing}: went on with {fewer} in each (cluster.shrink)"]


def _held(config: Config, ranks: int) -> bool:
    """Whether the cluster has room for so many ranks."""
    return holds(_totals(), _share(config, ranks)) >= ranks


def _missing(groups: int, ranks: int, need: Need, there: int) -> str:
    asked = f"{groups} group(s) of {ranks} rank(s) with {need} each are asked for"
    return f"{asked}, and the cluster holds {there} rank(s): {_told()}"


def _totals() -> list[Node]:
    """What every node that lives has in all."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _told() -> str:
    nodes = [f"{node.get('CPU', 0):g} CPU {node.get('GPU', 0):g} GPU" for node in _totals()]
    return f"{len(nodes)} node(s) with {'; '.join(nodes)}"


def _nodes() -> list[Node]:
    """What every node has free now."""
    from ray._private.state import available_resources_per_node

    return list(available_resources_per_node().values())


def _share(config: Config, ranks: int) -> Need:
    """CPUs and GPUs of a rank. CPU ranks may share cores; GPU ranks may not outnumber GPUs. Of a cluster that has lost a node
    since the run began, ranks need what they had then."""
    there = ray.cluster_resources()
    gpus = config.cluster.gpus_per_rank
    gpus = (1.0 if there.get("GPU", 0.0) else 0.0) if gpus is None else gpus
    cpus = config.cluster.cpus_per_rank or min(1.0, int(1000 * there.get("CPU", 0.0) / ranks) / 1000) or 1.0
    return Need(cpus, gpus)


def _with_threads(config: Config, ranks: int, need: Need) -> Need:
    """As set, else the cores of the smallest node that can hold a rank, shared out as if the ranks were spread evenly."""
    cores = [node.get("CPU", 1.0) for node in _totals() if fits(node, need)]
    alike = min(min(cores, default=1.0), min(cores, default=1.0) * len(cores) // ranks)
    return replace(need, threads=config.cluster.threads or max(1, int(alike)))


def _actors(kind: Any, group: Any, ranks: int, need: Need, secrets: str | None) -> list[Any]:
    # Nothing secret stands here: whoever reaches the cluster can read an actor's environment.
    quiet = {
        "OMP_NUM_THREADS": str(need.threads),
        "OMP_WAIT_POLICY": "passive",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONWARNINGS": "ignore::FutureWarning",
        "TORCHDYNAMO_DISABLE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        **({} if need.gpus else {"DS_ACCELERATOR": "cpu"}),
        **({VARIABLE: secrets} if secrets else {}),
    }
    return [
        kind.options(
            num_cpus=need.cpus,
            num_gpus=need.gpus,
            runtime_env={"env_vars": quiet},
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=i),
        ).remote()
        for i in range(ranks)
    ]


def _free() -> str:
    return ", ".join(
        f"{amount:g} {name}" for name, amount in sorted(ray.available_resources().items()) if name in ("CPU", "GPU")
    )
