"""What runs take against what the plan says they will: the peak memory of the fullest rank.

    python -m benchmarks.plan [--cases 40M,s3 …] [--list]

Every case is a run of two rounds on an embedded Ray, in a process of its own: random Llamas of about 40 and 80 million
elements made on the spot, and the embedded 135M model. A rank's figure is its `peak_memory` after the last round, the
resident peak of its process.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MIB = 1 << 20
SIZES = {"tiny": (32, 2), "40M": (768, 8), "80M": (1024, 9)}
TWO = {"groups": 2, "ranks_per_group": 1}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "tiny": ("tiny", {}, TWO),  # a process and nothing else
    "40M": ("40M", {}, TWO),
    "40M,b32": ("40M", {"batch": 32}, TWO),
    "40M,b32,checkpointing": ("40M", {"batch": 32, "gradient_checkpointing": True}, TWO),
    "40M,fp32": ("40M", {"precision": "fp32"}, TWO),
    "40M,lora": ("40M", {"adapter": "lora"}, TWO),
    "80M": ("80M", {}, TWO),
    "80M,s3": ("80M", {"zero_stage": 3}, TWO),
    "80M,groups=1": ("80M", {}, {"groups": 1, "ranks_per_group": 1}),
    "80M,s2,1x2": ("80M", {"zero_stage": 2}, {"groups": 1, "ranks_per_group": 2}),
    "80M,s3,1x2": ("80M", {"zero_stage": 3}, {"groups": 1, "ranks_per_group": 2}),
    "135M": ("135M", {}, TWO),
    "135M,lora": ("135M", {"adapter": "lora"}, TWO),
    "135M,b32,groups=1": ("135M", {"batch": 32}, {"groups": 1, "ranks_per_group": 1}),
}


def settings(case: str, folder: Path) -> Any:
    from dft_cluster.config_file import validate
    from tests import tiny

    size, train, cluster = CASES[case]
    tree: dict[str, Any] = {
        "facts": {"limit": 32},
        "method": {"rounds": 2},
        "train": {"epochs": 1, **train},
        "cluster": {"threads": 1, "address": "local", **cluster},
        "evaluate": {"protocols": ["teacher_forced"]},
        "converge": {"reliability": "off", "patience": "off", "keep": "last"},
        "run": {"dir": str(folder)},
        "track": {"wandb": "off"},
    }
    if size in SIZES:
        hidden, layers = SIZES[size]
        tree["model"] = {"name": str(tiny.model(folder / "model", hidden=hidden, layers=layers))}
        tree["facts"] = {"path": str(tiny.facts_file(folder, 32))}
    return validate(tree)


def measure(case: str) -> dict[str, Any]:
    """A real run, and the plan of the same job."""
    from dft_cluster.cluster.launch import on_ray
    from dft_cluster.methods.prepare import prepare
    from dft_cluster.methods.run import run
    from dft_cluster.planning.plan import plan
    from dft_cluster.runs.console import Console

    with tempfile.TemporaryDirectory(prefix="dft-plan-") as name:
        config = settings(case, Path(name))
        prepared = prepare(config)
        run(prepared, on_ray, Console(lambda _text: None))
        lines = (Path(name) / config.run.name / "metrics.jsonl").read_text().splitlines()
        memory = [json.loads(line) for line in lines][-2]["memory"]
        planned = {one.role: one.host for one in plan(prepared).memories}
    taken: dict[str, int] = {}
    for rank, peak in memory.items():
        role = rank.partition("-")[0]
        taken[role] = max(taken.get(role, 0), peak)
    return {
        "elements": sum(p.numel for p in prepared.parameters),
        "ranks": [(role, planned[role].total, peak, planned[role].parts) for role, peak in taken.items()],
    }


def rows(cases: list[str]) -> Iterator[str]:
    yield "| model | setting | groups x ranks | rank | planned MiB | taken MiB | off |\n|---|---|---|---|---|---|---|"
    for case in cases:
        _, train, cluster = CASES[case]
        found = _alone(case)
        said = ", ".join(f"{key}={value}" for key, value in train.items()) or "batch 8, bf16, stage 1"
        for role, planned, taken, _ in found["ranks"]:
            off = planned / taken - 1
            yield (
                f"| {found['elements'] / 1e6:.1f}M | {said} | {cluster['groups']} x {cluster['ranks_per_group']} | {role} "
                f"| {planned / MIB:.0f} | {taken / MIB:.0f} | {off:+.1%} |"
            )


def _alone(case: str) -> Any:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "benchmarks.plan", "--one", case]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES), metavar="CASE")
    parser.add_argument("--list", action="store_true", help="name the cases")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.list:
        print("\n".join(CASES))
    elif asked.one:
        print(json.dumps(measure(asked.one)))
    else:
        for row in rows(asked.cases):
            print(row, flush=True)


if __name__ == "__main__":
    main()
