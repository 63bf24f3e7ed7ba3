"""A real run of a model large enough to tell, in a process of its own, against its plan."""

import json
import os
import subprocess
import sys
from pathlib import Path

from dft_cluster.methods.prepare import prepare
from dft_cluster.planning.plan import plan
from tests import tiny
from tests.integration import runs

ROOT = Path(__file__).resolve().parents[3]
RUN = """
import json, sys
from dft_cluster.config_file import validate
from tests.integration import runs
print(json.dumps(runs.alone(validate(json.loads(sys.argv[1]))).rounds[-1]["memory"]))
"""


def test_a_run_takes_what_its_plan_says(tmp_path: Path) -> None:
    model = tiny.model(tmp_path / "model", hidden=768, layers=8)
    settings = runs.config(
        model, tiny.facts_file(tmp_path), tmp_path / "run",
        method={"rounds": 2}, train={"precision": "bf16", "epochs": 1, "batch": 8},
        cluster={"groups": 1}, evaluate={"protocols": ["teacher_forced"]},
    )  # fmt: skip
    [planned] = plan(prepare(settings)).memories
    command = [sys.executable, "-c", RUN, json.dumps(settings.to_json())]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment, cwd=ROOT)
    [taken] = json.loads(done.stdout.splitlines()[-1]).values()
    off = planned.host.total / taken - 1
    print(f"planned {planned.host.total >> 20} MiB, taken {taken >> 20} MiB, {off:+.1%}")
    assert abs(off) < 0.15, planned.host.parts
