"""A rank's share of θ as fragments of parameters: the same view for every ZeRO stage."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, order=True)
class Fragment:
    """Elements `start` to `start + length` of a flattened parameter, at `offset` of the rank's master `buffer`."""

    parameter: int
    start: int
    length: int
    buffer: int
    offset: int

    @property
    def stop(self) -> int:
        return self.start + self.length

    def of(self, buffers: Sequence[Tensor]) -> Tensor:
        """This fragment's elements in buffers laid out like the masters."""
        return buffers[self.buffer][self.offset : self.offset + self.length]


def masters(optimizer: Any, stage: int) -> list[Tensor]:
    """The fp32 weights that this rank updates, flat, padding included."""
    return list(optimizer.fp32_partitioned_groups_flat if stage == 3 else optimizer.single_partition_of_fp32_groups)


def moments(optimizer: Any, stage: int) -> list[dict[str, Tensor]]:
    """AdamW's state of every master buffer; made (all zero) where no step was taken yet."""
    states = []
    for master in masters(optimizer, stage):
        state = optimizer.optimizer.state[master]
        if not state:
            state["step"] = torch.zeros((), device=master.device)
            state |= {name: torch.zeros_like(master.data) for name in ("exp_avg", "exp_avg_sq")}
        states.append(state)
    return states


def fragments(optimizer: Any, stage: int, rank: int, index: Mapping[int, int]) -> list[Fragment]:
    """Every fragment of this rank, in parameter order; padding is in none. `index` numbers the weights, by their id.

    Stages 1 and 2 lay all parameters end to end and cut the whole into equal parts; stage 3 cuts each
    parameter into equal parts of its own. In both the padding comes last.
    """
    found = _of_stage_3(optimizer, rank, index) if stage == 3 else _of_stage_1_and_2(optimizer, rank, index)
    return sorted(fragment for fragment in found if fragment.length > 0)


def _of_stage_1_and_2(optimizer: Any, rank: int, index: Mapping[int, int]) -> Iterator[Fragment]:
    for group, weights in enumerate(optimizer.round_robin_bit16_groups):
        size = optimizer.partition_size[group]
        first, last = rank * size, (rank + 1) * size
        for weight, at in zip(weights, optimizer.round_robin_bit16_offsets[group], strict=True):
            begin, end = max(at, first), min(at + weight.numel(), last)
            yield Fragment(index[id(weight)], begin - at, end - begin, group, begin - first)


def _of_stage_3(optimizer: Any, rank: int, index: Mapping[int, int]) -> Iterator[Fragment]:
    for weights in optimizer.fp16_groups:
        for weight in weights:
            group, offset, size = optimizer.grad_position[optimizer.get_param_id(weight)]
            start = rank * size
            yield Fragment(index[id(weight)], start, min(size, weight.ds_numel - start), group, offset)


def push(optimizer: Any, stage: int) -> None:
    """Makes the working weights the cast masters, on every rank (a collective call).

    Under stage 3, parameters below the persistence threshold stay gathered on every rank and go stale unless they
    are cut and gathered anew.
    """
    if stage < 3:
        optimizer.update_lp_params()
        return
    for group in range(len(optimizer.fp32_partitioned_groups_flat)):
        optimizer._reassign_or_swap_out_partitioned_parameters(group)
    persistent = optimizer.persistent_parameters
    if persistent:
        persistent[0].partition(persistent, has_been_updated=False)
        persistent[0].all_gather(persistent)


def forget(optimizer: Any) -> None:
    """A fresh optimizer without a rebuild: every moment and step counter back to zero."""
    for state in optimizer.optimizer.state.values():
        for value in state.values():
            if isinstance(value, Tensor):
                value.zero_()


def let_go() -> None:
    """ZeRO-3's engine is gone, but not the weights: DeepSpeed has them on a stack, and in a cache inside of a decorator."""
    from deepspeed.runtime.zero import parameter_offload
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

    parameter_offload.FWD_MODULE_STACK.clear()
    for method in vars(PartitionedParameterCoordinator).values():
        for cell in getattr(method, "__closure__", None) or ():
            if hasattr(cell.cell_contents, "cache_clear"):
                cell.cell_contents.cache_clear()
