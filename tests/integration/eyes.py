"""A rank that lets tests look inside: its shard, its logits."""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import ray
import torch

from dft_cluster.ranks.rank import Rank


class Eyes(Rank):
    @classmethod
    def crew(cls, size: int) -> list[Any]:
        """Actors of this class in the session's Ray; workers need not find this file."""
        ray.cloudpickle.register_pickle_by_value(sys.modules[cls.__module__])
        quiet = {"PYTHONWARNINGS": "ignore", "TORCHDYNAMO_DISABLE": "1", "DS_ACCELERATOR": "cpu"}
        actor = ray.remote(num_cpus=0.1, concurrency_groups={"watch": 1})(cls)
        return [actor.options(runtime_env={"env_vars": quiet}).remote() for _ in range(size)]

    def shard(self) -> list[tuple[int, int, np.ndarray]]:
        engine = self._engine
        return [(f.parameter, f.start, f.of(engine.masters).numpy().copy()) for f in engine.fragments]

    def shift(self, amount: float) -> None:
        for fragment in self._engine.fragments:
            fragment.of(self._engine.masters).add_(amount)
        self._engine.push()

    @torch.no_grad()
    def logits(self, ids: Sequence[int]) -> np.ndarray:
        out = self._engine.module(input_ids=torch.tensor([list(ids)]), use_cache=False).logits
        return out.float().numpy()
