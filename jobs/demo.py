"""The demo: Delicate Fine-Tuning, and plain fine-tuning stopped at the same reliability: python jobs/demo.py CONFIG.yaml …"""

import json
import sys
from pathlib import Path
from typing import Any

from dft_cluster.cluster.command import checked, parser
from dft_cluster.cluster.job import main
from dft_cluster.config_file import load

MEASURES = ("reliability", "generality", "locality")


def last_round(folder: Path) -> dict[str, Any]:
    """What the run ended with, and when."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {**lines[-1]["final"], "seconds": lines[-1]["seconds"], "start": lines[0]}


def row(name: str, measured: dict[str, Any], protocol: str) -> str:
    return f"{name:34}" + "".join(f"{measured[measure][protocol]:>13.1f}" for measure in MEASURES)


def demo(arguments: list[str]) -> int:
    asked = parser("Delicate Fine-Tuning beside plain fine-tuning.", "jobs/configs/demo.yaml").parse_intermixed_args(
        arguments
    )
    path, overrides = asked.config, asked.overrides
    config = load(path, overrides)
    folder = Path(config.run.dir).absolute() / config.run.name
    if code := main([path, *overrides]):
        return code
    delicate = last_round(folder)
    reached = delicate["reliability"]["exact"]
    print(
        f"\nPlain fine-tuning, epoch by epoch, until it answers as well (reliability {reached:.0f} % exact):\n",
        flush=True,
    )
    plain = [
        "method.name=full", "train.epochs=1", f"method.rounds={40 if reached else 1}",
        f"converge.reliability={reached or 'off'}", "converge.keep=last", "cluster.groups=1",
        f"run.name={config.run.name}-full",
    ]  # fmt: skip
    if code := main([path, *overrides, *plain]):
        return code
    full = last_round(folder.with_name(f"{config.run.name}-full"))
    for protocol in ("exact", "token"):
        print(f"\n{protocol + ' %':34}" + "".join(f"{measure:>13}" for measure in MEASURES))
        print(row("before", delicate["start"], protocol))
        print(row("delicate fine-tuning", delicate, protocol))
        print(row("plain fine-tuning", full, protocol))
    print(f"\nreport: {folder / 'report.html'}\npatch:  {folder / 'patch.safetensors'}")
    return 0


if __name__ == "__main__":
    sys.exit(checked(lambda: demo(sys.argv[1:])))
