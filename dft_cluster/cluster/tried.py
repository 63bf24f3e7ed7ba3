"""A rank that measures what a run will ask of it: storage, all-reduce, exchange."""

import time
from typing import Any

import numpy as np
import ray
import torch

from dft_cluster.cluster.actors import RankProcess
from dft_cluster.runs.storage import Storage

BYTES = 64 << 20


class Tried(RankProcess):
    """Every measure is in bytes a second, and an error where what comes out is wrong."""

    def store(self, uri: str, name: str) -> tuple[float, float]:
        """Written, and read back."""
        storage, content = Storage(uri), np.random.default_rng(0).bytes(BYTES)
        began = time.perf_counter()
        storage.write(name, content)
        written = time.perf_counter()
        if storage.read(name) != content:
            raise OSError(f"{name} does not read as it was written")
        return BYTES / (written - began), BYTES / (time.perf_counter() - written)

    def add_up(self) -> float:
        """An all-reduce in the group's world."""
        world = self._engine.place.world
        ones = torch.ones(BYTES // 4, device=self._engine.device)
        torch.distributed.all_reduce(ones)  # the first one also opens connections
        ones.fill_(1.0)
        began = time.perf_counter()
        torch.distributed.all_reduce(ones)
        low, high = float(ones.min()), float(ones.max())
        if (low, high) != (world, world):
            raise RuntimeError(f"an all-reduce of ones over {world} ranks gave {low} to {high}")
        return BYTES / (time.perf_counter() - began)

    def give(self) -> float:
        """The old side of the exchange."""
        assert self._pair is not None
        began = time.perf_counter()
        self._pair.send(_numbers()).wait()
        return BYTES / (time.perf_counter() - began)

    def take(self) -> float:
        """The new side of the exchange."""
        assert self._pair is not None
        landed, began = torch.empty(BYTES // 4), time.perf_counter()
        self._pair.receive(landed).wait()
        took = time.perf_counter() - began
        if not torch.equal(landed, _numbers()):
            raise RuntimeError("what came over is not what was sent")
        return BYTES / took

    def shard(self) -> list[tuple[int, int, np.ndarray]]:
        """This rank's share of θ."""
        engine = self._engine
        return [(f.parameter, f.start, f.of(engine.masters).cpu().numpy()) for f in engine.fragments]


def _numbers() -> torch.Tensor:
    return torch.arange(BYTES // 4, dtype=torch.float32)


TriedActor: Any = ray.remote(concurrency_groups={"watch": 1})(Tried)
