"""Groups on clusters of several shapes: real placement by Ray, with GPUs that are only counted."""

import json
import subprocess
import sys
from typing import Any

# In a process of its own: a cluster of nodes that come and go is not the tests' embedded one. Ranks here load no torch.
SCRIPT = """
import json, sys
import ray
from ray.cluster_utils import Cluster
from dft_cluster.cluster.launch import ranks_on, room, settled, shape
from dft_cluster.config_file import validate
from dft_cluster.runs.console import Console

class Standing:
    def who(self):
        return ray.get_runtime_context().get_node_id(), 0, 0.0
    def tidy(self):
        pass
    def progress(self):
        return "", 0, 0, 0.0

kind = ray.remote(concurrency_groups={"watch": 1})(Standing)
there = Cluster()
found = []
for gpus, groups, ranks in json.loads(sys.argv[1]):
    if gpus:
        there.add_node(num_cpus=8, num_gpus=gpus, include_dashboard=False)
    if not ray.is_initialized():
        ray.init(address=there.address, log_to_driver=False, configure_logging=False)
    cluster = {"groups": groups, "ranks_per_group": ranks, "gpus_per_rank": 1, "threads": 1}
    config, said = validate({"cluster": cluster}), Console(lambda _: None)
    groups, ranks, need, notes = room(config, groups, ranks, said)
    with ranks_on(config, groups, ranks, need, said, kind) as team:
        sides = (team.old, team.new) if team.paired else (team.everyone,)
        names = [[node for node, *_ in side.call(Standing.who)] for side in sides]
        numbers = {node["NodeID"]: node["Resources"]["GPU"] for node in ray.nodes()}
        held = []
        for contrasts in (True, False):
            config, notes = settled(validate({"cluster": {"threads": 1}}))
            held.append([*room(config, *shape(config, contrasts), said)[:2], *notes])
        for asked in ({"groups": 2}, {"wait": 0.1}):
            config, _ = settled(validate({"cluster": asked}))
            try:
                held.append(room(config, *shape(config, True), said)[:2])
            except ValueError as error:
                held.append(str(error))
        found.append({
            "nodes": [[[name[:8], numbers[name]] for name in side] for side in names], "notes": team.notes, "held": held,
        })
print("FOUND", json.dumps(found))
ray.shutdown()
there.shutdown()
"""


def placed(*steps: tuple[int, int, int]) -> list[dict[str, Any]]:
    """For each step (GPUs of one more node or 0, groups, ranks in each): where the ranks went, and what is said of it."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(steps)], capture_output=True, text=True, timeout=300, check=False
    )
    [line] = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")] or [done.stdout + done.stderr]
    return list(json.loads(line.removeprefix("FOUND ")))


def test_a_group_goes_to_one_node_where_one_holds_it_and_else_it_is_said() -> None:
    one, eight, both, over = placed((1, 1, 1), (8, 2, 4), (8, 2, 8), (0, 1, 17))
    assert [len(side) for side in one["nodes"]] == [1]
    # 2 x 4 on the node of 8; 2 x 8 on one node each; 17 on all three, which is slower.
    assert [{tuple(at) for at in side} for side in eight["nodes"]] == [{tuple(eight["nodes"][0][0])}] * 2
    first, second = ({tuple(at) for at in side} for side in both["nodes"])
    assert len(first) == len(second) == 1
    assert first != second
    assert {gpus for _, gpus in first | second} == {8}
    assert len({tuple(at) for at in over["nodes"][0]}) == 3
    assert [one["notes"], eight["notes"], both["notes"]] == [[], [], []]
    [note] = over["notes"]
    assert "no node holds a group of 17 ranks with 1 CPU and 1 GPU each" in note


def test_a_cluster_of_one_gpu_takes_one_group_unless_two_are_asked_for_or_waited_for() -> None:
    one, two = placed((1, 1, 1), (1, 1, 1))
    *alone, asked, waited = one["held"]
    for groups, ranks, note in alone:
        assert (groups, ranks) == (1, 1)
        assert "1 node(s) with 8 CPU 1 GPU" in note
    assert "2 group(s) of 1 rank(s)" in asked
    assert "2 group(s) of 1 rank(s)" in waited
    assert two["held"] == [[2, 1], [1, 2], [2, 1], [2, 1]]
