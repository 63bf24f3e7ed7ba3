"""An update's command line: read the config, check, plan or run it, and say in one line how it ended."""

import json
from collections.abc import Sequence

from dft_cluster.cluster import secrets
from dft_cluster.cluster.command import FAILED, OK, absolute, checked, parser, watched
from dft_cluster.config import Config
from dft_cluster.config_file import load


def main(arguments: Sequence[str] | None = None) -> int:
    """`CONFIG.yaml [section.key=value …] [--check | --plan [--calibrate]]`; returns the exit code."""
    asking = parser("Updates what a model knows.", "jobs/configs/")
    asking.add_argument(
        "--check", action="store_true", help="validate everything, print the resolved config, start nothing"
    )
    asking.add_argument(
        "--plan", action="store_true", help="say what the run would need of memory, traffic, disk; start nothing"
    )
    asking.add_argument(
        "--calibrate", action="store_true", help="with --plan: time a few steps, and say the seconds too"
    )
    asking.add_argument(
        "--nodes",
        help="with --plan: the cluster to plan for, such as 2x8x80:1000 (2 nodes, 8 devices of 80 GB, 1000 GB)",
    )
    asked = asking.parse_intermixed_args(arguments)
    if asked.nodes and (not asked.plan or asked.calibrate):
        asking.error("--nodes goes with --plan alone: what is timed is the cluster that is there")
    if asked.calibrate and not asked.plan:
        asking.error("--calibrate goes with --plan")

    def work() -> int:
        config = ready(load(asked.config, asked.overrides))
        if asked.plan:
            return _plan(config, asked.nodes, calibrated=asked.calibrate)
        return _check(config) if asked.check else _run(config)

    return checked(work)


def ready(config: Config) -> Config:
    """With `run.dir` absolute, and the keys of `cluster.secrets` in the environment."""
    if config.cluster.secrets:
        secrets.load(config.cluster.secrets)
    return config.model_copy(update={"run": config.run.model_copy(update={"dir": absolute(config.run.dir)})})


def _check(config: Config) -> int:
    from dft_cluster.methods.prepare import prepare

    prepared = prepare(config)
    for note in prepared.notes:
        print(f"# {note}")
    weights = prepared.parameters
    print(f"# {len(prepared.facts)} facts, {sum(p.numel for p in weights)} elements in {len(weights)} weights")
    print(json.dumps(config.to_json(), indent=1))
    return OK


def _plan(config: Config, nodes: str | None, *, calibrated: bool) -> int:
    from dft_cluster.cluster.launch import on_ray
    from dft_cluster.cluster.look import capacity
    from dft_cluster.methods.prepare import prepare
    from dft_cluster.planning.capacity import Capacity
    from dft_cluster.planning.command import plan_command
    from dft_cluster.ranks.team import LostRankError
    from dft_cluster.runs.console import Console

    console = Console()
    try:
        there = Capacity.of_text(nodes) if nodes else capacity(config, console)
        text = plan_command(prepare(config), calibrated, on_ray, console, there)
    except LostRankError as lost:
        console.say(f"failed: {lost}; nothing was written, the same command tries again")
        return FAILED
    finally:
        console.close()
    print(text)
    return OK


def _run(config: Config) -> int:
    from dft_cluster.cluster.launch import on_ray
    from dft_cluster.methods.prepare import prepare
    from dft_cluster.methods.run import run
    from dft_cluster.runs.console import Console

    def work(console: Console) -> int:
        console.phase("reading facts and model")
        run(prepare(config), on_ray, console)
        return OK

    return watched(
        work, config.run.dir, "the last finished round is safe: run the same command again to go on from there"
    )
