"""Where groups go: each packed on one node where it fits, else spread; and whether a cluster can hold them at all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Node = Mapping[str, float]
"""What a node has of each resource."""
Strategy = Literal["STRICT_PACK", "PACK"]
"""A group on one node, or spread over as few as may be."""


@dataclass(frozen=True)
class Need:
    """What one rank needs."""

    cpus: float
    gpus: float
    threads: int = 1
    """CPU threads, which no resource counts."""

    def given(self) -> dict[str, float]:
        """The same as settings of `cluster`."""
        return {"gpus_per_rank": self.gpus, "cpus_per_rank": self.cpus, "threads": self.threads}

    def bundle(self) -> dict[str, float]:
        return {"CPU": self.cpus, **({"GPU": self.gpus} if self.gpus else {})}

    def __str__(self) -> str:
        return f"{self.cpus:g} CPU" + (f" and {self.gpus:g} GPU" if self.gpus else "")


def fits(node: Node, need: Need) -> int:
    """How many ranks a node can hold."""
    # Fractions of a CPU add up to a whole one only to within rounding.
    return min(int(node.get(name, 0.0) / amount + 1e-6) for name, amount in need.bundle().items() if amount > 0)


def holds(nodes: Sequence[Node], need: Need) -> int:
    """How many ranks all nodes together can hold."""
    return sum(fits(node, need) for node in nodes)


def arrange(nodes: Sequence[Node], groups: int, ranks: int, need: Need) -> list[Strategy]:
    """For each group: on one node, or spread over as few as may be. Those on one node are placed first, or a spread group could
    take their room; groups are alike, so that it does not matter which node takes which."""
    packed = min(groups, sum(fits(node, need) // ranks for node in nodes))
    return ["STRICT_PACK" if group < packed else "PACK" for group in range(groups)]
