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
    """For each group: on one node (the one that has the least to spare), or spread over as few as may be."""
    left = [fits(node, need) for node in nodes]
    chosen: list[Strategy] = []
    for _ in range(groups):
        roomy = [place for place, room in enumerate(left) if room >= ranks]
        if roomy:
            left[min(roomy, key=lambda place: left[place])] -= ranks
        chosen.append("STRICT_PACK" if roomy else "PACK")
    # Those on one node are placed first, or a spread group could take their room.
    return sorted(chosen, key=lambda strategy: strategy == "PACK")
