"""What all command lines do alike: read the arguments, place the run's folder, end with one line and an exit code."""

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from dft_cluster.errors import InputError
from dft_cluster.runs.console import Console

OK, FAILED, WRONG = 0, 1, 2


def parser(description: str, configs: str) -> argparse.ArgumentParser:
    """`CONFIG.yaml [section.key=value …]`, with quiet and honest defaults for the libraries that are loaded after it."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    made = argparse.ArgumentParser(description=description)
    made.add_argument("config", help=f"a YAML file, see {configs}")
    made.add_argument("overrides", nargs="*", metavar="section.key=value", help="laid over the file")
    return made


def absolute(directory: str) -> str:
    """`run.dir` as every rank can use it: a job's working directory is a copy that goes away."""
    from dft_cluster.cluster.launch import inside_a_job

    try:
        directory = directory if "://" in directory else str(Path(directory).expanduser())
    except RuntimeError as error:
        raise InputError(f"run.dir: {directory!r}: {error}") from error
    if "://" in directory or Path(directory).is_absolute():
        return directory
    if inside_a_job():
        raise InputError(
            f"run.dir: {directory!r} is relative, and a job's working directory is gone after it; right would be an "
            "absolute folder that every node sees, or a storage URI such as s3://bucket/runs"
        )
    return str(Path(directory).absolute())


def checked(work: Callable[[], int]) -> int:
    """The exit code of `work`; what the user can mend before anything starts is told on stderr."""
    try:
        return work()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return WRONG


def watched(work: Callable[[Console], int], directory: str, again: str) -> int:
    """The exit code of a job with its console; whatever ends it, the last line says what to do."""
    from dft_cluster.methods.job import RoundRefusedError, RunFailedError

    signal.signal(signal.SIGTERM, _stop)
    console = Console()
    try:
        return work(console)
    except KeyboardInterrupt:
        console.say(f"stopped from outside; {again}")
    except RoundRefusedError as error:
        console.say(f"failed: {error}")
    except RunFailedError as error:
        console.say(f"failed: {error}; {again}")
    except InputError:
        raise
    except OSError as error:
        console.say(f"failed: {error}; {again} once run.dir ({directory}) can be written")
    except Exception as error:
        # Whatever else it is, a person needs its trace, and after it what to do.
        traceback.print_exc()
        console.say(f"failed: {type(error).__name__}: {error}; {again}")
    finally:
        console.close()
    return FAILED


def _stop(_number: int, _frame: FrameType | None) -> None:
    """`ray job stop` asks with SIGTERM; nothing on the way may take it for a failure of its own."""
    raise KeyboardInterrupt
