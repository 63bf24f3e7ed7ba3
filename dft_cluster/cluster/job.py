"""A job's command line: read the config, check it, run it, and say in one line how it ended."""

import argparse
import json
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from dft_cluster.config import Config, load
from dft_cluster.errors import InputError

OK, FAILED, WRONG = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """`CONFIG.yaml [section.key=value …] [--check]`; returns the exit code."""
    parser = argparse.ArgumentParser(description="Updates what a model knows.")
    parser.add_argument("config", help="a YAML file, see jobs/configs/")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="laid over the file")
    parser.add_argument(
        "--check", action="store_true", help="validate everything, print the resolved config, start nothing"
    )
    asked = parser.parse_intermixed_args(arguments)
    # Quiet and honest defaults, before the libraries that read them are loaded.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        config = _placed(load(asked.config, asked.overrides))
        return _check(config) if asked.check else _run(config)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return WRONG


def _placed(config: Config) -> Config:
    """With `run.dir` absolute: a job's working directory is a copy that goes away."""
    from dft_cluster.cluster.launch import inside_a_job

    if "://" in config.run.dir or Path(config.run.dir).is_absolute():
        return config
    if inside_a_job():
        raise InputError(
            f"run.dir: {config.run.dir!r} is relative, and a job's working directory is gone after it; right would be an "
            "absolute folder that every node sees, or a storage URI such as s3://bucket/runs"
        )
    return config.model_copy(
        update={"run": config.run.model_copy(update={"dir": str(Path(config.run.dir).absolute())})}
    )


def _check(config: Config) -> int:
    from dft_cluster.methods.prepare import prepare

    prepared = prepare(config)
    for note in prepared.notes:
        print(f"# {note}")
    weights = prepared.parameters
    print(f"# {len(prepared.facts)} facts, {sum(p.numel for p in weights)} elements in {len(weights)} weights")
    print(json.dumps(config.to_json(), indent=1))
    return OK


def _run(config: Config) -> int:
    from dft_cluster.cluster.actors import LostRankError
    from dft_cluster.cluster.launch import on_ray
    from dft_cluster.methods.job import RoundRefusedError, RunFailedError
    from dft_cluster.methods.prepare import prepare
    from dft_cluster.methods.run import run
    from dft_cluster.runs.console import Console

    signal.signal(signal.SIGTERM, _stop)
    console = Console()
    again = "the last finished round is safe: run the same command again to go on from there"
    try:
        console.phase("reading facts and model")
        run(prepare(config), on_ray, console)
    except (KeyboardInterrupt, _StoppedError):
        console.say(f"stopped from outside; {again}")
    except RoundRefusedError as error:
        console.say(f"failed: {error}")
    except (LostRankError, RunFailedError) as error:
        console.say(f"failed: {error}; {again}")
    except InputError:
        raise
    except OSError as error:
        console.say(f"failed: {error}; {again} once run.dir ({config.run.dir}) can be written")
    except Exception as error:
        # Whatever else it is, a person needs its trace, and after it what to do.
        traceback.print_exc()
        console.say(f"failed: {type(error).__name__}: {error}; {again}")
    else:
        return OK
    finally:
        console.close()
    return FAILED


class _StoppedError(Exception):
    """`ray job stop` asks with SIGTERM."""


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise _StoppedError
