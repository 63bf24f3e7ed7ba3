"""What there is, and whether the ranks of a plan fit into it."""

import math
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dft_cluster.errors import InputError
from dft_cluster.planning import memory
from dft_cluster.planning.asked import Asked, Device
from dft_cluster.planning.memory import GIB, Memory

USABLE = 0.9
"""The share of a memory that ranks may fill: allocators leave gaps, and the driver, Ray and the system live there too."""


_NODES = re.compile(r"(?P<nodes>[1-9]\d*)(x(?P<devices>[1-9]\d*)x(?P<each>\d+(\.\d+)?))?:(?P<host>\d+(\.\d+)?)")
_GB = 10**9


@dataclass(frozen=True)
class Node:
    host_bytes: int
    devices: int = 0
    device_bytes: int = 0

    @classmethod
    def here(cls) -> "Node":
        """This machine."""
        devices = torch.cuda.device_count()
        each = torch.cuda.get_device_properties(0).total_memory if devices else 0
        return cls(_host_bytes(), devices, each)

    def __str__(self) -> str:
        devices = f"{self.devices} devices of {_gib(self.device_bytes)} and " if self.devices else ""
        return f"{devices}{_gib(self.host_bytes)} on the host"


@dataclass(frozen=True)
class Capacity:
    nodes: tuple[Node, ...]

    @classmethod
    def of_text(cls, text: str) -> "Capacity":
        """`2x8x80:1000` are two nodes with 8 devices of 80 GB each and 1000 GB on the host, `4:64` four without devices;
        unequal ones with a comma between."""
        nodes: list[Node] = []
        for part in text.split(","):
            if (found := _NODES.fullmatch(part.strip())) is None:
                raise InputError(
                    f"--nodes: {part!r} is not understood; right would be NODESxDEVICESxGB:HOST_GB, such as 2x8x80:1000, or "
                    "NODES:HOST_GB where there are no devices; unequal ones with a comma between"
                )
            one = Node(
                int(float(found["host"]) * _GB), int(found["devices"] or 0), int(float(found["each"] or 0) * _GB)
            )
            nodes += [one] * int(found["nodes"])
        return cls(tuple(nodes))

    def __str__(self) -> str:
        counted = Counter(map(str, self.nodes))
        return "; ".join(f"{count} node{'s'[: count > 1]} with {node}" for node, count in counted.items())

    @property
    def devices(self) -> int:
        return sum(node.devices for node in self.nodes)

    def device(self, gpus_per_rank: float | None) -> Device:
        """What ranks would run on."""
        return "cuda" if self.devices and gpus_per_rank != 0 else "cpu"


def _host_bytes() -> int:
    """The machine's memory, or what its container may have of it."""
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text(encoding="ascii").strip() if limit.is_file() else "max"
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(there, int(text)) if text != "max" else there


@dataclass(frozen=True)
class Fit:
    """Bytes that the fullest device and node would need, and what they have for ranks."""

    device_needs: int
    device_has: int
    host_needs: int
    host_has: int
    missing_devices: int = 0

    @property
    def fits(self) -> bool:
        return self.lack == 0 and not self.missing_devices

    @property
    def lack(self) -> int:
        """Bytes too many, on the device and on the host together."""
        return max(0, self.device_needs - self.device_has) + max(0, self.host_needs - self.host_has)

    def text(self) -> str:
        parts = []
        if self.device_has:
            parts.append(f"a device needs {_gib(self.device_needs)} of {_gib(self.device_has)}")
        parts.append(f"the fullest node's host needs {_gib(self.host_needs)} of {_gib(self.host_has)}")
        if self.missing_devices:
            parts.append(f"{self.missing_devices} devices are missing")
        return f"{'it fits' if self.fits else 'it does NOT fit'}: {', '.join(parts)} (nine tenths of what there is)"


def fit(asked: Asked, capacity: Capacity) -> Fit:
    """Old and new ranks are placed node by node, as many as its devices hold; on CPUs evenly."""
    ranks = _by_rank(asked)
    gpus = asked.config.cluster.gpus_per_rank or 1.0
    on_cuda = asked.device == "cuda"
    left, hosts = list(ranks), list[tuple[int, int]]()
    device_needs, device_has = 0, 0
    for number, node in enumerate(sorted(capacity.nodes, key=lambda node: -node.devices)):
        nodes_left = len(capacity.nodes) - number
        room = int(node.devices / gpus + 1e-9) if on_cuda else -(-len(left) // nodes_left)
        here, left = left[:room], left[room:]
        if not here:
            continue
        hosts.append((_host_of_node(asked, here), int(node.host_bytes * USABLE)))
        if on_cuda:
            together = max(1, int(1 / gpus + 1e-9))
            full = together * max(one.device.total for one in here)
            if full - node.device_bytes * USABLE > device_needs - device_has or not device_has:
                device_needs, device_has = full, int(node.device_bytes * USABLE)
    fullest = max(hosts, key=lambda pair: pair[0] - pair[1], default=(0, 0))
    return Fit(device_needs, device_has, *fullest, math.ceil(len(left) * gpus))


def _by_rank(asked: Asked) -> list[Memory]:
    return [one for one in memory.of_ranks(asked) for _ in range(asked.world)]


def _host_of_node(asked: Asked, here: Sequence[Memory]) -> int:
    """While they work; or while they read the model, which under ZeRO-3 only the first rank of a group holds whole."""
    readers = len(here) if asked.config.train.zero_stage < 3 else -(-len(here) // asked.world)
    processes = sum(one.host.parts.get("process", 0) for one in here)
    return max(sum(one.host.total for one in here), processes + readers * max(one.loading for one in here))


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"
