"""A model opened up: its blocks and down-projections, with ways to look at what passes and to run only a part."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dft_cluster.errors import InputError
from dft_cluster.models.head import head_at
from dft_cluster.models.mlp import DownProjection, block_names, down_projections


class _EnoughError(Exception):
    """Thrown to leave a forward pass once all is known; never leaves this module."""


@dataclass
class Caught:
    """What went through a module in the last pass."""

    taken: Tensor | None = None
    given: Tensor | None = None
    whole: bool = False
    """Whether it gave a tuple, with `given` its first item."""


class Anatomy:
    """Blocks, down-projections and head of a causal language model, as modules."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.places: list[DownProjection] = down_projections(model)
        self.blocks: list[nn.Module] = [model.get_submodule(name) for name in block_names(model)]
        self.downs: list[nn.Module] = [model.get_submodule(place.name) for place in self.places]
        self.embedding: nn.Module = model.get_input_embeddings()
        self.head: nn.Module | None = model.get_output_embeddings()
        self.device: torch.device = self.embedding.weight.device  # type: ignore[assignment]
        self._takes_positions = "position_ids" in inspect.signature(model.forward).parameters
        self._tokens = torch.Size()  # [texts, width] of the last pass

    def forward(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any = None, *, keep: bool = False) -> Any:
        """One pass; `cache` holds earlier tokens, `keep` asks for one of these."""
        self._tokens = ids.shape
        places = {"position_ids": positions} if self._takes_positions else {}
        return self.model(
            input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=keep or cache is not None, **places
        )

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Without gradients of the weights, and without dropout."""
        training = self.model.training
        moving = [weight for weight in self.model.parameters() if weight.requires_grad]
        self.model.eval()
        for weight in moving:
            weight.requires_grad_(False)
        try:
            yield
        finally:
            for weight in moving:
                weight.requires_grad_(True)
            self.model.train(training)

    @contextmanager
    def head_at(self, rows: Tensor, columns: Tensor) -> Iterator[None]:
        """Logits at these positions alone: they come out as [1, positions, vocabulary]."""
        with head_at(self.head, rows, columns) as looked:
            yield
        if not looked.there:
            raise InputError(
                f"model.name: {type(self.model).__name__} gives no module that takes [examples, positions, width] to logits (its "
                "get_output_embeddings() was asked), which rome and memit look through; right would be a method that trains"
            )

    @contextmanager
    def entered_after(self, block: int, hidden: Tensor, whole: bool) -> Iterator[None]:
        """Runs only what comes after `block`, whose output is given; `whole` tells that blocks give tuples."""

        def give(*_args: Any, **_kwargs: Any) -> Any:
            return (hidden, None) if whole else hidden

        skipped = self.blocks[: block + 1]
        own = [module.__dict__.get("forward") for module in skipped]
        for module in skipped:
            module.forward = give
        try:
            yield
        finally:
            for module, forward in zip(skipped, own, strict=True):
                del module.forward  # the class's own shows again
                if forward is not None:
                    module.forward = forward

    def until(self, block: int, run: Callable[[], Any]) -> None:
        """A forward pass that ends with a block."""

        def stop(_module: nn.Module, _given: Any, _output: Any) -> None:
            raise _EnoughError

        with _hook(self.blocks[block].register_forward_hook(stop)):
            try:
                run()
            except _EnoughError:
                return

    @contextmanager
    def catching(self, module: nn.Module) -> Iterator[Caught]:
        """What goes through a module in `forward`, token by token."""
        caught = Caught()

        def see(_module: nn.Module, taken: tuple[Any, ...], output: Any) -> None:
            caught.whole = isinstance(output, tuple)
            caught.taken = self._by_text(taken[0]) if taken else None
            caught.given = self._by_text(output[0] if caught.whole else output)

        with _hook(module.register_forward_hook(see)):
            yield caught

    @contextmanager
    def changing(self, module: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """Another output in the place of a module's own."""

        def changed(states: Tensor) -> Tensor:
            return change(self._by_text(states)).reshape(states.shape)

        def put(_module: nn.Module, _taken: Any, output: Any) -> Any:
            return (changed(output[0]), *output[1:]) if isinstance(output, tuple) else changed(output)

        with _hook(module.register_forward_hook(put)):
            yield

    def _by_text(self, states: Tensor) -> Tensor:
        """As [texts, width, size]: some blocks (OPT's) run their MLP on the tokens of all texts in one row."""
        return states.view(*self._tokens, -1) if states.dim() == 2 else states


@contextmanager
def _hook(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()
