"""What the planning tests plan for: LLaMA2-7B's shapes, and passes by formula where counting them would take long."""

from functools import cache
from typing import Any

from transformers import LlamaConfig

from dft_cluster.config import Config, LoraSettings, TrainSettings
from dft_cluster.config_file import validate
from dft_cluster.planning.activations import Activations, Shape
from dft_cluster.planning.asked import Asked, Device, Passes, alike
from dft_cluster.planning.model import Model

GB = 10**9


@cache
def llama_7b(adapter: str = "none") -> Model:
    config = LlamaConfig(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, vocab_size=32000
    )
    return Model.of_config("llama2-7b", config, adapter)


@cache
def small(adapter: str = "none") -> Model:
    """About 3 million elements in 4 layers."""
    config = LlamaConfig(
        hidden_size=128, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4, vocab_size=8000
    )
    return Model.of_config("small", config, adapter, saved_bytes=4)


class Formula(Passes):
    """Passes that need some bytes a token; with checkpointing a fifth of them."""

    each = 100_000

    def training(self, train: TrainSettings, shape: Shape) -> Activations:
        bytes_ = self.each * shape.tokens // (5 if train.gradient_checkpointing else 1)
        return Activations(bytes_, bytes_ // 4)

    def evaluation(self, train: TrainSettings, shape: Shape) -> int:
        return self.each * shape.tokens // 10


def config(**sections: dict[str, Any]) -> Config:
    return validate({"track": {"wandb": "off"}, **sections})


def asked(
    model: Model, settings: Config, device: Device = "cuda", facts: int = 64, passes: Passes | None = None
) -> Asked:
    sides = (alike(facts, 24, 8), alike(facts, 24, 8))
    passes = passes or Passes(model, LoraSettings())
    contrasts = settings.method.name == "dft"
    return Asked(
        settings,
        model,
        device,
        contrasts,
        sides if contrasts else sides[1:],
        (Shape(settings.evaluate.batch, 32, 8 * settings.evaluate.batch),),
        passes,
    )
