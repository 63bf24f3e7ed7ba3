"""Low-rank adapters (Hu et al. 2022): W + s·B·A with s = alpha / rank, and the fp32 weights that they adapt.

A and B are what DeepSpeed trains. The adapted weights stand still meanwhile: every rank keeps an equal share of each of
them in fp32, and Δ = s·B·A is worked out, piece by piece, where it is needed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dft_cluster.arithmetic.contrast import all_finite
from dft_cluster.config import LoraSettings
from dft_cluster.models.structure import Parameter
from dft_cluster.training import shards
from dft_cluster.training.batches import mixed
from dft_cluster.training.shards import Fragment
from dft_cluster.training.theta import write_weight

ADAPTER = "default"


@dataclass
class Adapted:
    """One weight with its adapter."""

    parameter: Parameter
    weight: nn.Parameter
    first: nn.Parameter
    """A [rank, in]"""
    second: nn.Parameter
    """B [out, rank]"""
    turned: bool
    """Whether the weight is stored as [in, out] (GPT-2)."""


def wrap(model: Any, parameters: Sequence[Parameter], settings: LoraSettings) -> tuple[nn.Module, list[Adapted]]:
    """The model with an adapter beside each of the parameters; nothing else is trained."""
    from peft import LoraConfig, inject_adapter_in_model

    modules = [p.name.removesuffix(".weight") for p in parameters]
    turned = [not isinstance(model.get_submodule(name), nn.Linear) for name in modules]
    config = LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout, target_modules=modules,
        fan_in_fan_out=all(turned),
    )  # fmt: skip
    model = inject_adapter_in_model(config, model, ADAPTER)
    found = []
    for parameter, name, stored_turned in zip(parameters, modules, turned, strict=True):
        layer: Any = model.get_submodule(name)
        found.append(
            Adapted(
                parameter,
                layer.base_layer.weight,
                layer.lora_A[ADAPTER].weight,
                layer.lora_B[ADAPTER].weight,
                stored_turned,
            )
        )
    trained = {id(w) for one in found for w in (one.first, one.second)}
    for weight in model.parameters():
        weight.requires_grad_(id(weight) in trained)
    return model, found


class LowRank:
    """θ under an adapter: the shares of the adapted weights in fp32, beside A and B in the optimizer's masters."""

    def __init__(
        self, adapted: list[Adapted], optimizer: Any, stage: int, rank: int, world: int, settings: LoraSettings,
        device: torch.device,
    ) -> None:  # fmt: skip
        self._adapted, self._optimizer, self._stage, self._world = adapted, optimizer, stage, world
        self._settings, self._scale = settings, settings.alpha / settings.rank
        self.fragments: list[Fragment] = []
        self.masters: list[Tensor] = []
        pinned = device.type == "cpu" and torch.cuda.is_available()
        for number, one in enumerate(adapted):
            # The same for every rank; what pads the last ones is in no fragment.
            share = -(-one.parameter.numel // world)
            start = min(rank * share, one.parameter.numel)
            length = min(share, one.parameter.numel - start)
            self.masters.append(torch.zeros(share, device=device, pin_memory=pinned))
            if length:
                self.fragments.append(Fragment(one.parameter.index, start, length, number, 0))
        self._starts = [rank * len(m) for m in self.masters]
        self._factors: list[tuple[Tensor, Tensor]] = []
        self.factor_masters = [m.data for m in shards.masters(optimizer, stage)]
        weights = {id(w): -1 - j for j, w in enumerate(self._trained())}
        self.factor_fragments = shards.fragments(optimizer, stage, rank, weights)

    def _trained(self) -> Iterator[nn.Parameter]:
        for one in self._adapted:
            yield from (one.first, one.second)

    def start(self, _device: torch.device) -> list[Tensor]:
        return self.masters

    def begin(self, seed: int) -> None:
        """A fresh adapter, the same for every group: A uniform as a linear map's own start, B zero, so that Δ is zero."""
        shapes = [self._shape(place) for place in range(2 * len(self._adapted))]
        for f in self.factor_fragments:
            place = -1 - f.parameter
            out = f.of(self.factor_masters)
            if place % 2:
                out.zero_()
            else:
                draw = torch.Generator().manual_seed(mixed(seed, place))
                bound = shapes[place][1] ** -0.5
                values = torch.empty(shapes[place]).uniform_(-bound, bound, generator=draw)
                out.copy_(values.flatten()[f.start : f.stop])
        shards.push(self._optimizer, self._stage)
        self._factors = []

    def clear(self) -> None:
        """Δ = 0 until the next fine-tune."""
        for f in self.factor_fragments:
            if (-1 - f.parameter) % 2:
                f.of(self.factor_masters).zero_()
        shards.push(self._optimizer, self._stage)
        self._factors = []

    def _shape(self, place: int) -> tuple[int, int]:
        one = self._adapted[place // 2].parameter
        outs, ins = reversed(one.shape) if self._adapted[place // 2].turned else one.shape
        return (outs, self._settings.rank) if place % 2 else (self._settings.rank, ins)

    def gather(self) -> None:
        """Every rank learns all of A and B in fp32 (a collective call)."""
        factors = []
        for place in range(2 * len(self._adapted)):
            # Where the weights are, which is what the ranks' backend reduces; an offloaded optimizer's masters are elsewhere.
            whole = torch.zeros(self._shape(place), device=self._adapted[place // 2].weight.device)
            for f in self.factor_fragments:
                if f.parameter == -1 - place:
                    whole.flatten()[f.start : f.stop] = f.of(self.factor_masters)
            if self._world > 1:
                torch.distributed.all_reduce(whole)
            factors.append(whole.to(self.masters[0].device))
        self._factors = list(zip(factors[::2], factors[1::2], strict=True))

    def broken(self) -> set[int]:
        """The adapted weights of which this rank's share of A or B holds NaN or infinity."""
        lost = [f.parameter for f in self.factor_fragments if not all_finite(f.of(self.factor_masters))]
        return {self._adapted[(-1 - place) // 2].parameter.index for place in lost}

    def delta(self, start: Sequence[Tensor], number: int, first: int, stop: int) -> Tensor:
        """s·Σ_j B_ij·A_jk, added up in the order of j, so that an element's bits do not depend on how it is cut out."""
        one = self._adapted[number]
        size = one.parameter.numel
        low, high = min(self._starts[number] + first, size), min(self._starts[number] + stop, size)
        out = torch.zeros(stop - first, device=start[number].device)
        if low == high or not self._factors:
            return out
        a, b = self._factors[number]
        columns = one.parameter.shape[1]
        top, bottom = low // columns, -(-high // columns)
        left, right = (a.T[top:bottom], b.T) if one.turned else (b[top:bottom], a)
        block = torch.zeros(bottom - top, columns, device=out.device)
        for j in range(self._settings.rank):
            block += left[:, j : j + 1] * right[j]
        out[: high - low] = block.mul_(self._scale).flatten()[low - top * columns : high - top * columns]
        return out

    def merge(self) -> None:
        for f in self.fragments:
            f.of(self.masters).add_(self.delta(self.masters, f.buffer, 0, f.length))
        self.clear()

    def push(self) -> None:
        for one, master in zip(self._adapted, self.masters, strict=True):
            mine = master.to(device=one.weight.device, dtype=one.weight.dtype)
            whole = mine
            if self._world > 1:
                shares = [torch.empty_like(mine).view(torch.uint8) for _ in range(self._world)]
                torch.distributed.all_gather(shares, mine.view(torch.uint8))  # as bytes: gloo knows few dtypes
                whole = torch.cat(shares).view(mine.dtype)
            write_weight(one.weight, whole[: one.parameter.numel].view(one.parameter.shape), self._stage)
