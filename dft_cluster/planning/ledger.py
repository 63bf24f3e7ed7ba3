"""A rank's memory as blocks taken and freed in the order of its work, on the device and on the host."""

from dataclasses import dataclass, field
from typing import Literal

Place = Literal["device", "host"]
Part = Literal[
    "process",
    "weights",
    "gradients",
    "optimizer",
    "θ kept and scores",
    "DeepSpeed's buffers",
    "activations and logits",
]
PARTS: tuple[Part, ...] = Part.__args__  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Moment:
    """What is held at one time, by part."""

    phase: str = ""
    parts: dict[Part, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return sum(self.parts.values())


@dataclass
class _Block:
    part: Part
    size: int
    place: Place


class Ledger:
    """Takes and frees blocks, and remembers the fullest moment of each place.

    A device's allocator serves new blocks out of freed ones, so that its peak is that of the bytes alive. On a CPU host and
    device are one, and training keeps glibc from handing anything back (`training.engine`): blocks of different sizes then
    hardly ever fit into what others left, so that what is freed counts (in its own part) until the heap is trimmed, except
    where a block is known to go into another's place.
    """

    def __init__(self, device: Literal["cpu", "cuda"]) -> None:
        self._heap = device == "cpu"
        self._blocks: dict[str, _Block] = {}
        self._freed: dict[str, _Block] = {}
        self.phase = ""
        self.peak: dict[Place, Moment] = {"device": Moment(), "host": Moment()}

    def take(self, name: str, part: Part, size: float, place: Place = "device", instead_of: str = "") -> None:
        """A new block; in a heap it uses the room that `instead_of` left."""
        assert name not in self._blocks, name
        place = "host" if self._heap else place
        if instead_of in self._freed:
            hole = self._freed[instead_of]
            hole.size = max(0, hole.size - int(size))
        self._blocks[name] = _Block(part, int(size), place)
        now = self.now(place)
        if now.total > self.peak[place].total:
            self.peak[place] = now

    def free(self, *names: str) -> None:
        for name in names:
            block = self._blocks.pop(name)
            if self._heap:
                block.size += self._freed[name].size if name in self._freed else 0
                self._freed[name] = block

    def trim(self) -> None:
        """What was freed goes back to the system."""
        self._freed.clear()

    def now(self, place: Place) -> Moment:
        parts: dict[Part, int] = dict.fromkeys(PARTS, 0)
        for block in (*self._blocks.values(), *self._freed.values()):
            if block.place == place:
                parts[block.part] += block.size
        return Moment(self.phase, {part: size for part, size in parts.items() if size})

    def __contains__(self, name: str) -> bool:
        return name in self._blocks
