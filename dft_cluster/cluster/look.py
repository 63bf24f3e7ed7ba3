"""What the nodes of a cluster have, asked of each of them."""

import os
from dataclasses import replace

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dft_cluster.cluster.launch import connect, meant
from dft_cluster.config import Config
from dft_cluster.errors import InputError
from dft_cluster.planning.capacity import Capacity, Node
from dft_cluster.runs.console import Console

LONGEST = 120.0
"""Seconds in which every node has to answer; the first time it loads torch."""


def capacity(config: Config, console: Console) -> Capacity | None:
    """Of the cluster that is meant; None where ranks would run on an embedded one."""
    if not meant(config):
        return None
    connect(config, console)
    console.phase("asking the nodes what they have")
    living = [node for node in ray.nodes() if node["Alive"]]
    asked = [
        _node.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote()
        for node in living
    ]
    silent = ray.wait(asked, num_returns=len(asked), timeout=LONGEST)[1]
    if silent:
        names = [node["NodeManagerAddress"] for node, one in zip(living, asked, strict=True) if one in silent]
        raise InputError(f"cluster: {', '.join(names)} did not say in {LONGEST:.0f} s what they have")
    # What Ray may give to ranks, where a node keeps devices or all of its CPUs for something else.
    nodes = tuple(
        replace(there, devices=min(there.devices, int(node["Resources"].get("GPU", 0))))
        for node, there in zip(living, ray.get(asked), strict=True)
        if node["Resources"].get("CPU", 0)
    )
    if not nodes:
        raise InputError("cluster: no node is there that takes ranks; right would be --nodes, for those that will be")
    return Capacity(nodes)


@ray.remote(num_cpus=0)
def _node() -> Node:
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # Ray hides the devices from a task that takes none
    return Node.here()
