"""Time and extra memory of finding the exact top 5 % of n scores: ours against what libraries offer.

    python -m benchmarks.selection [--sizes 10000000 134000000] [--threads 2] [--repeats 5]

Every way runs in a process of its own on the same seeded scores; seconds are the median, memory is the peak above what
the scores themselves take. The floor is one pass that reads the same bytes with all threads (a sum).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

SHARE = 0.05
WAYS = ("floor", "ours", "numpy.partition", "torch.topk", "torch.kthvalue", "torch.sort")


def peak() -> int:
    with Path("/proc/self/status").open(encoding="ascii") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def measure(way: str, size: int, threads: int, repeats: int) -> dict[str, float]:
    import numpy as np
    import torch

    from dft_cluster.arithmetic.selection import SAMPLE, Tally, bracket_from, find_cuts, sample, tally

    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    scores = torch.empty(size).normal_(generator=generator).abs_()
    keys = scores.view(torch.int32)
    k = int(SHARE * size)

    def ours() -> float:
        start = bracket_from(sample([keys], SAMPLE), k / size)
        cut = find_cuts({0: k}, lambda b: {0: Tally.total([tally([keys], b[0])])}, {0: start})[0]
        return cut.score

    ways: dict[str, Callable[[], float]] = {
        "floor": lambda: float(scores.sum()),
        "ours": ours,
        "numpy.partition": lambda: float(np.partition(scores.numpy(), size - k)[size - k]),
        "torch.topk": lambda: float(torch.topk(scores, k, sorted=False).values.min()),
        "torch.kthvalue": lambda: float(torch.kthvalue(scores, size - k + 1).values),
        "torch.sort": lambda: float(torch.sort(scores).values[size - k]),
    }
    small = scores[: 1 << 16].clone()  # what a library allocates once is not the method's
    torch.topk(small, 9), torch.kthvalue(small, 9), torch.sort(small), small.sum(), np.partition(small.numpy(), 9)
    before = peak()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        value = ways[way]()
        seconds.append(time.perf_counter() - began)
    return {"seconds": statistics.median(seconds), "extra": peak() - before, "value": value}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000_000, 134_000_000])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--one", nargs=2, metavar=("WAY", "SIZE"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(measure(asked.one[0], int(asked.one[1]), asked.threads, asked.repeats)))
        return
    print(f"{asked.threads} threads, median of {asked.repeats}, top {SHARE:.0%}\n")
    print("| elements | way | seconds | times ours | extra MiB |\n|---|---|---|---|---|")
    for size in asked.sizes:
        found = {way: _alone(way, size, asked) for way in WAYS}
        values = {way: one["value"] for way, one in found.items() if way != "floor"}
        assert len(set(values.values())) == 1, f"they disagree: {values}"
        for way, one in found.items():
            ratio = one["seconds"] / found["ours"]["seconds"]
            print(f"| {size:,} | {way} | {one['seconds']:.3f} | {ratio:.2f} | {one['extra'] / 2**20:.1f} |", flush=True)


def _alone(way: str, size: int, asked: argparse.Namespace) -> dict[str, float]:
    repeats = asked.repeats if way not in ("torch.topk", "torch.sort", "torch.kthvalue") else min(asked.repeats, 2)
    command = [sys.executable, "-m", "benchmarks.selection", "--one", way, str(size), "--threads", str(asked.threads),
               "--repeats", str(repeats)]  # fmt: skip
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


if __name__ == "__main__":
    main()
