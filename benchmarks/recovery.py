"""What submitting costs, and what is lost with a rank: seconds on this machine, with a tiny model (what is timed is the house).

    RAY_AUTH_MODE=disabled python -m benchmarks.recovery [--repeats 3]

- submit: `ray job submit` on a running head against the same config in `jobs/update.py`, from the command to its end;
- killed: from a rank's death in round 2 until new ranks begin that round again;
- stopped: from the stopping of a rank until the run says so, beyond `cluster.hang`.
"""

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from tests import tiny
from tests.integration import runs
from tests.integration.harm import Harm
from tests.integration.heads import head_node

ROOT = Path(__file__).resolve().parents[1]
HANG = 8


def seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


class Timed:
    """One tiny model and its facts, with a new name for every run."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.model, self.facts = folder, tiny.model(folder / "model"), tiny.facts_file(folder)
        self.count = 0

    def settings(self, **cluster: Any) -> Any:
        self.count += 1
        return runs.config(
            self.model, self.facts, self.folder / "runs", method={"rounds": 2}, run={"name": f"run-{self.count}"},
            cluster={"groups": 2, "ranks_per_group": 1, "threads": 1, **cluster},
        )  # fmt: skip

    def config(self) -> Path:
        settings = self.settings()
        file = self.folder / f"{settings.run.name}.yaml"
        file.write_text(yaml.safe_dump(settings.to_json()))
        return file

    def directly(self) -> float:
        command = [sys.executable, str(ROOT / "jobs" / "update.py"), str(self.config())]
        return seconds(lambda: subprocess.run(command, check=True, capture_output=True))

    def submitted(self) -> float:
        with head_node(self.folder) as head:
            config = self.config()
            return seconds(lambda: head.submit(ROOT, config))

    def after(self, how: signal.Signals, words: str, **cluster: Any) -> float:
        """Seconds from the harm until the run says these words."""
        said: list[tuple[float, str]] = []
        with pytest.MonkeyPatch.context() as patch:
            harm = Harm("fine_tune", "new-0", how, turn=2).install(patch)
            runs.on_cluster(self.settings(**cluster), lambda text: said.append((time.monotonic(), text)))
        return next(at - harm.done[0] for at, text in said if words in text and at > harm.done[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    repeats = range(parser.parse_args().repeats)
    with tempfile.TemporaryDirectory() as folder:
        timed = Timed(Path(folder))
        timed.directly()  # reads what every later process needs from the disk
        for _ in repeats:
            alone, job = timed.directly(), timed.submitted()
            print(f"submit: {job:.1f} s against {alone:.1f} s directly, {job - alone:+.1f} s", flush=True)
        ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, configure_logging=False)
        for _ in repeats:
            print(f"killed: {timed.after(signal.SIGKILL, 'round 2 …'):.1f} s until round 2 begins again", flush=True)
        for _ in repeats:
            late = timed.after(signal.SIGSTOP, f"did not answer for {HANG} s", hang=HANG) - HANG
            print(f"stopped: noticed {late:.1f} s after the {HANG} s of cluster.hang", flush=True)
        ray.shutdown()


if __name__ == "__main__":
    main()
