"""What a plan needs to know of a model: the shapes of its weights, out of a config or a folder's headers; nothing is loaded."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from dft_cluster.methods.prepare import Prepared
from dft_cluster.models.structure import Kind, Parameter, read_config
from dft_cluster.patch.folder import Folder

ADAPTED = re.compile(r"attn|attention|mlp|feed_forward")


@dataclass(frozen=True)
class Model:
    """The weights by name, and which of them a round updates (all of them trained, or adapted)."""

    name: str
    weights: tuple[Parameter, ...]
    updated: frozenset[str]
    config: Any = None
    """The transformers config, which the activations are counted with; a plan of shapes alone goes without."""
    saved_bytes: int = 4
    """Bytes of an element in the model's own files."""
    trust_remote_code: bool = False

    @classmethod
    def of_seat(cls, seat: Prepared) -> "Model":
        """A job's model in the rounds of one seat."""
        trusted = seat.config.model.trust_remote_code
        weights = tuple(sorted((*seat.parameters, *seat.standing), key=lambda p: p.index))
        files = Folder(seat.folder)
        saved = sum(files.dtype(p.saved).itemsize * p.numel for p in weights) / sum(p.numel for p in weights)
        updated = frozenset(p.name for p in seat.parameters)
        config = read_config(seat.folder, trusted)
        return cls(seat.config.model.name, weights, updated, config, round(saved), trusted)

    @classmethod
    def of_config(cls, name: str, config: Any, adapter: str = "none", saved_bytes: int = 2) -> "Model":
        """A model that need not be here: its weights on the meta device."""
        from transformers import AutoModelForCausalLM

        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        model.tie_weights()
        made = cls.of_shapes(name, {n: tuple(w.shape) for n, w in model.named_parameters()}, adapter, saved_bytes)
        return replace(made, config=config)

    @classmethod
    def of_shapes(
        cls, name: str, shapes: Mapping[str, tuple[int, ...]], adapter: str = "none", saved_bytes: int = 2
    ) -> "Model":
        """A model of which the shapes alone are known."""
        weights = tuple(_parameter(i, n, tuple(shape)) for i, (n, shape) in enumerate(shapes.items()))
        adapted = {p.name for p in weights if p.layer is not None and len(p.shape) == 2 and ADAPTED.search(p.name)}
        updated = frozenset(adapted if adapter == "lora" else (p.name for p in weights))
        return cls(name, weights, updated, None, saved_bytes)

    @property
    def elements(self) -> int:
        return sum(p.numel for p in self.weights)

    @property
    def theta(self) -> list[Parameter]:
        """The weights that are updated: N of the method counts their elements."""
        return [p for p in self.weights if p.name in self.updated]

    def trained(self, adapter: str, rank: int) -> list[int]:
        """The elements of each weight that the optimizer has: θ's own, or an adapter's A [rank, in] and B [out, rank]."""
        if adapter == "none":
            return [p.numel for p in self.theta]
        return [rank * side for p in self.theta for side in reversed(p.shape)]

    def shrunk(self, layers: int) -> Any:
        """The config with fewer layers, and with every list that goes by layers cut to them."""
        config = type(self.config).from_dict(self.config.to_dict())
        many = config.num_hidden_layers
        for key, value in list(vars(config).items()):
            if isinstance(value, list | tuple) and len(value) == many:
                setattr(config, key, value[:layers])
        config.num_hidden_layers = layers
        return config


def share(sizes: Sequence[int], world: int, stage: int) -> int:
    """Elements of a rank's shard, padding counted: stages 1 and 2 cut the whole, stage 3 each weight."""
    return sum(-(-size // world) for size in sizes) if stage == 3 else -(-sum(sizes) // world)


def _parameter(index: int, name: str, shape: tuple[int, ...]) -> Parameter:
    numel = 1
    for side in shape:
        numel *= side
    layer = re.search(r"\.(\d+)\.", name)
    kind: Kind = "attention" if re.search(r"attn|attention", name) else "mlp" if layer else "other"
    return Parameter(index, name, name, shape, numel, int(layer[1]) if layer else None, kind)
