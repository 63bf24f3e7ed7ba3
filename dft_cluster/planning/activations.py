"""The bytes of a forward and backward pass, counted on the model's own code: fake tensors have shapes and no memory.

A model of one layer and one of two are run, with every allocation and release of a tensor followed. What all layers have at
once grows by the same amount with each, so that the two give that of any number of layers.
"""

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dft_cluster.config import LoraSettings, TrainSettings
from dft_cluster.planning.model import Model
from dft_cluster.training.adapter import wrap
from dft_cluster.training.batches import Batch
from dft_cluster.training.losses import answer_logits, each_nll, total_nll


@dataclass(frozen=True, order=True)
class Shape:
    """A batch as the model sees it: examples, tokens of each (padding counted), and answer tokens of all."""

    rows: int
    width: int
    answers: int

    @property
    def tokens(self) -> int:
        return self.rows * self.width


@dataclass(frozen=True)
class Activations:
    """Bytes beyond weights and gradients."""

    whole: int
    """At the peak of forward and backward: what all layers keep, the logits and their fp32 copies."""
    layer: int
    """While a single layer's backward runs, when all gradients but its own are there."""


class _Live(TorchDispatchMode):
    """Follows the bytes of all tensors made while it is on."""

    def __init__(self, known: Sequence[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes = {tensor.untyped_storage()._cdata: 0 for tensor in known}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for one in result if isinstance(result, tuple | list) else [result]:
            if isinstance(one, Tensor):
                self._count(one.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)


Pass = Callable[[nn.Module, Batch], None]


def training(model: Model, train: TrainSettings, lora: LoraSettings, shape: Shape) -> Activations:
    """Of one micro-batch of a fine-tune."""

    def both(module: nn.Module, batch: Batch) -> None:
        total_nll(answer_logits(module, batch), batch.targets).backward()

    one, two = (_peak(model, train, lora, shape, layers, both) for layers in (1, 2))
    layers = model.config.num_hidden_layers
    return Activations(one + (layers - 1) * (two - one), one)


def evaluation(model: Model, train: TrainSettings, lora: LoraSettings, shape: Shape) -> int:
    """Of one batch of probes; no layer keeps anything for a backward pass."""

    @torch.no_grad()
    def ask(module: nn.Module, batch: Batch) -> None:
        logits = answer_logits(module, batch)
        logits.argmax(-1)
        each_nll(logits, batch.targets)

    return _peak(model, train, lora, shape, 1, ask)


def _peak(model: Model, train: TrainSettings, lora: LoraSettings, shape: Shape, layers: int, go: Pass) -> int:
    """The most bytes alive at once in a model of so many layers, without its weights and their finished gradients."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from transformers import AutoModelForCausalLM

    working = torch.bfloat16 if train.precision == "bf16" else torch.float32
    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(
            model.shrunk(layers), dtype=working, trust_remote_code=model.trust_remote_code
        )
        module.tie_weights()
        if train.gradient_checkpointing:
            module.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        _choose_trained(module, model, train, lora)
    module.train()
    with FakeTensorMode():
        _fake(module)
        for weight in module.parameters():
            if weight.requires_grad:
                weight.register_post_accumulate_grad_hook(_forget)
        ids = torch.zeros(shape.rows, shape.width, dtype=torch.long)
        answers = torch.zeros(shape.answers, dtype=torch.long)
        batch = Batch(ids, torch.ones_like(ids), answers, answers, answers)
        live = _Live([*module.parameters(), *module.buffers()])
        with live:
            go(module, batch)
    return live.peak


def _choose_trained(module: nn.Module, model: Model, train: TrainSettings, lora: LoraSettings) -> None:
    there = dict(module.named_parameters())
    theta = [p for p in model.theta if p.name in there]
    if train.adapter == "lora":
        wrap(module, theta, lora)
        return
    for name, weight in there.items():
        weight.requires_grad_(name in model.updated)


def _fake(module: nn.Module) -> None:
    """Weights and buffers of the meta device become fake ones of a CPU, so that attention takes the way it would there."""
    made: dict[int, Tensor] = {}
    for part in module.modules():
        for table in (part._parameters, part._buffers):
            for name, tensor in table.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    fake = torch.empty(tensor.shape, dtype=tensor.dtype)
                    made[id(tensor)] = nn.Parameter(fake, tensor.requires_grad) if table is part._parameters else fake
                table[name] = made[id(tensor)]  # type: ignore[assignment]


def _forget(weight: Tensor) -> None:
    """Gradients are counted apart, all of them."""
    weight.grad = None
