"""Random harm to short runs: a rank or the driver killed, or a rank stopped, at a random moment.

    python -m tests.soak --kills 200 --out soak.csv

appends one row a kill, and goes on after the last row that is there. A run counts as whole when it ended by itself with the
bits of one that was never harmed, and every round that was finished before the harm was still there, to the byte.
"""

import argparse
import csv
import itertools
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from pathlib import Path

import psutil
import ray
import yaml

from dft_cluster.patch import inspect
from tests import tiny
from tests.integration import runs

ROOT = Path(__file__).resolve().parents[1]
HOWS = ("kill rank", "kill rank", "stop rank", "kill driver")
LIMIT = 300.0
"""Seconds in which a run has to end, or it counts as hanging."""
ROUNDS = 4


@dataclass(frozen=True)
class Row:
    number: int
    seed: int
    how: str
    during: int
    """The round at whose beginning time was counted from; 0: when its ranks were there."""
    moment: float
    """Seconds from then on."""
    struck: bool
    """Whether there was still something to harm; what came too late is no kill."""
    finished_before: int
    seconds_after: float = 0.0
    """From the strike until the run ended."""
    whole: bool = False
    said: str = ""


class Soak:
    """Short runs on one embedded Ray, with the outcome of one that is never harmed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = ray.get_runtime_context().gcs_address
        self.model, self.facts = tiny.model(folder / "model"), tiny.facts_file(folder)
        self.config = folder / "job.yaml"
        settings = runs.config(
            self.model, self.facts, folder / "runs", method={"rounds": ROUNDS}, train={"epochs": 24},
            cluster={"address": self.address, "groups": 2, "threads": 1, "hang": 10},
        )  # fmt: skip
        self.config.write_text(yaml.safe_dump(settings.to_json()))
        for name in ("cold", "whole"):  # the second one is as quick as those that are harmed
            with self._driver(name) as driver:
                began = [self._begun(driver, number) for number in range(ROUNDS + 1)]
                assert driver.wait(LIMIT) == 0, _read(driver)
        self.spans = [after - before for before, after in pairwise([*began, time.monotonic()])]
        self.spans[-1] = min(self.spans[-2:])  # what comes after the last round has no ranks any more
        self.right = self._outcome("whole")

    def harm(self, number: int, seed: int, strikes: int = 1) -> list[Row]:
        """A run of its own that is struck so many times, each in a later round than the one before."""
        chance, name = random.Random(f"{seed}-{number}"), f"harmed-{number}"
        struck: list[tuple[Row, dict[str, str], float]] = []
        with ExitStack() as drivers:
            driver = drivers.enter_context(self._driver(name))
            for during in sorted(chance.sample(range(ROUNDS + 1), strikes)):
                how, moment = chance.choice(HOWS), chance.random() * self.spans[during]
                self._begun(driver, during)
                ranks = _ranks(driver) if _ended(driver, moment) is None else []
                before, began = self._finished(name), time.monotonic()
                row = Row(number, seed, how, during, round(moment, 2), bool(ranks), len(before))
                struck.append((row, before, began))
                if ranks and how == "kill driver":
                    driver.kill()
                    driver = drivers.enter_context(self._driver(name))
                elif ranks:
                    chance.choice(ranks).send_signal(signal.SIGKILL if how == "kill rank" else signal.SIGSTOP)
            code, ended = _ended(driver), time.monotonic()
            said = self._wrong(name, code, _read(driver), {k: v for _, before, _ in struck for k, v in before.items()})
        return [
            replace(row, seconds_after=round(ended - began, 1), whole=not said, said=said.replace("\n", " "))
            for row, _, began in struck
        ]

    def _wrong(self, name: str, code: int | None, told: str, before: dict[str, str]) -> str:
        """What is not as it should be with a run that was struck; nothing if it is whole."""
        if code is None:
            return f"hangs after {LIMIT:.0f} s"
        if code != 0:
            return f"exit code {code}: {told[-600:]}"
        after = self._finished(name)
        if lost := [one for one, manifest in before.items() if after.get(one) != manifest]:
            return f"lost finished rounds: {', '.join(lost)}"
        return "" if self._outcome(name) == self.right else "ended with other bits"

    def _begun(self, driver: subprocess.Popen[str], number: int) -> float:
        """When this round or a later one began, with 0 when the ranks were there; or when the run ended."""
        until = time.monotonic() + LIMIT
        while driver.poll() is None:
            if number == 0:
                _ranks(driver)
                break
            if any(int(begun) >= number for begun in re.findall(r"round (\d+) …", _read(driver))):
                break
            if time.monotonic() > until:
                raise RuntimeError(f"round {number} never began: {_read(driver)}")
            time.sleep(0.02)
        return time.monotonic()

    def _outcome(self, name: str) -> str:
        return inspect(self.folder / "runs" / name / "patch.safetensors").result_fingerprint

    def _finished(self, name: str) -> dict[str, str]:
        """The rounds whose manifest stands, with all it says: the seconds that a round took tell it from one done again."""
        manifests = (self.folder / "runs" / name / "checkpoints").glob("round-*/manifest.json")
        return {file.parent.name: file.read_text() for file in manifests}

    @contextmanager
    def _driver(self, name: str) -> Iterator[subprocess.Popen[str]]:
        command = [sys.executable, str(ROOT / "jobs" / "update.py"), str(self.config), f"run.name={name}"]
        with tempfile.TemporaryFile("w+") as log:
            driver = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, text=True)
            driver.log = log  # type: ignore[attr-defined]
            try:
                yield driver
            finally:
                driver.kill()
                driver.wait()


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _read(driver: subprocess.Popen[str]) -> str:
    log = driver.log  # type: ignore[attr-defined]
    log.seek(0)
    return str(log.read())


def _ranks(driver: subprocess.Popen[str]) -> list[psutil.Process]:
    """The processes of the run's ranks, as soon as there are any; none if it has ended."""
    until = time.monotonic() + LIMIT
    while True:
        ranks = [p for p in psutil.Process().children(recursive=True) if "RankProcess" in _title(p)]
        if ranks or driver.poll() is not None:
            return sorted(ranks, key=lambda p: p.pid)
        if time.monotonic() > until:
            raise RuntimeError(f"the ranks never came: {_read(driver)}")
        time.sleep(0.05)


def _ended(driver: subprocess.Popen[str], limit: float = LIMIT) -> int | None:
    try:
        return driver.wait(limit)
    except subprocess.TimeoutExpired:
        return None


def main() -> int:
    parser = argparse.ArgumentParser(description="Random harm to short runs.")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("soak.csv"))
    asked = parser.parse_args()
    rows = list(csv.DictReader(asked.out.open())) if asked.out.exists() else []
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, configure_logging=False)
    kills = sum(row["struck"] == "True" for row in rows)
    broken = sum(row["whole"] != "True" for row in rows)
    with tempfile.TemporaryDirectory() as folder, asked.out.open("a", newline="") as out:
        table = csv.DictWriter(out, [field.name for field in fields(Row)])
        if not rows:
            table.writeheader()
        soak = Soak(Path(folder))
        for number in itertools.count(len(rows)):
            if kills >= asked.kills:
                break
            [row] = soak.harm(number, asked.seed)
            table.writerow(asdict(row))
            out.flush()
            kills, broken = kills + row.struck, broken + (not row.whole)
            print(row, flush=True)
    ray.shutdown()
    print(f"{kills} kills, {broken} runs not whole")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
