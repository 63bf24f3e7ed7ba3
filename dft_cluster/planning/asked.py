"""What a plan is made for: a config, a model, the examples, and where it would run."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from dft_cluster.config import ONE_ROUND, Config, LoraSettings, TrainSettings
from dft_cluster.facts.layout import Example
from dft_cluster.methods.prepare import WARM_UP
from dft_cluster.planning import activations
from dft_cluster.planning.activations import Activations, Shape
from dft_cluster.planning.model import Model
from dft_cluster.training.batches import shuffled, split

Device = Literal["cpu", "cuda"]


@dataclass
class Passes:
    """The activations of a model's passes, each counted once."""

    model: Model
    lora: LoraSettings
    _known: dict[tuple[object, ...], Activations] = field(default_factory=dict)

    def training(self, train: TrainSettings, shape: Shape) -> Activations:
        if self.model.config is None:
            return Activations(0, 0)
        key = ("training", train.precision, train.gradient_checkpointing, train.adapter, shape)
        if key not in self._known:
            self._known[key] = activations.training(self.model, train, self.lora, shape)
        return self._known[key]

    def evaluation(self, train: TrainSettings, shape: Shape) -> int:
        if self.model.config is None:
            return 0
        key = ("evaluation", train.precision, train.adapter, shape)
        if key not in self._known:
            self._known[key] = Activations(activations.evaluation(self.model, train, self.lora, shape), 0)
        return self._known[key].whole


@dataclass(frozen=True)
class Asked:
    """One seat of a job, as a plan sees it."""

    config: Config
    model: Model
    device: Device
    contrasts: bool
    """Whether the method has an old side and a new side; else all ranks are one group."""
    sides: tuple[Sequence[Example], ...]
    """The training sets; only their lengths count."""
    probes: tuple[Shape, ...]
    """The batches of an evaluation."""
    passes: Passes
    first: int = 1
    """The first of the seat's rounds; `WARM_UP` where it is what comes before them."""

    @property
    def warms_up(self) -> bool:
        """Whether the seat is one plain fine-tune of every weight, whatever the method."""
        return self.first == WARM_UP

    @property
    def paired(self) -> bool:
        return self.contrasts and self.config.groups == 2

    @property
    def world(self) -> int:
        """Ranks of one group."""
        return self.config.cluster.ranks_per_group if self.paired else self.config.world

    @property
    def ranks(self) -> int:
        return self.config.world

    @property
    def width(self) -> int:
        """Bytes of an element of the working weights."""
        return 2 if self.config.train.precision == "bf16" else 4

    @property
    def steps(self) -> int:
        """Optimizer steps that a rank takes in a round, or in the warm-up, one after the other."""
        return self._epochs * -(-max(map(len, self.sides), default=0) // self.config.train.batch)

    @property
    def _epochs(self) -> int:
        """Of old and new together, where they are not side by side."""
        train, old = self.config.train, self.config.dft.old_epochs
        if self.warms_up:
            return self.config.warmup.epochs
        if self.config.method.name in ONE_ROUND:
            return 0
        epochs = [old or train.epochs, train.epochs] if self.contrasts else [train.epochs]
        return max(epochs) if self.paired else sum(epochs)

    @cached_property
    def shapes(self) -> list[Shape]:
        """The micro-batches of the training."""
        shares = self._shares(self.sides)
        return sorted({shape_of(part) for ranks in shares for rank in ranks for part in rank})

    @cached_property
    def micro_batches(self) -> float:
        """Forward passes of a rank in an optimizer step: more than one where `tokens_per_batch` splits its share."""
        parts = [max(len(share) for share in shares) for shares in self._shares(self.sides[-1:])]
        return sum(parts) / len(parts) if parts else 1.0

    def _shares(self, sides: Sequence[Sequence[Example]]) -> Iterator[list[list[list[Example]]]]:
        """Of every step in the seat's first epoch the micro-batches of each rank. Its order is known, that of others is alike."""
        train = self.config.train
        for examples in sides:
            order = shuffled(len(examples), train.seed, self.first, 0)
            for first in range(0, len(order), train.batch):
                chosen = [examples[i] for i in order[first : first + train.batch]]
                yield [split(chosen[rank :: self.world], train.tokens_per_batch) for rank in range(self.world)]

    def training(self) -> Activations:
        """The most that a micro-batch needs: the largest by tokens and the largest by logits are looked at."""
        return most([self.passes.training(self.config.train, shape) for shape in heaviest(self.shapes)])

    def evaluation(self) -> int:
        """The most that a batch of probes needs, teacher-forced or decoded freely."""
        forced = max((self.passes.evaluation(self.config.train, shape) for shape in heaviest(self.probes)), default=0)
        return max(forced, self._cache())

    def _cache(self) -> int:
        """Keys and values of all layers, for every token of a decoded batch; the warm-up decodes nothing."""
        model, evaluate = self.model.config, self.config.evaluate
        if model is None or self.warms_up or "generated" not in evaluate.protocols or not self.probes:
            return 0
        head = getattr(model, "head_dim", None) or model.hidden_size // model.num_attention_heads
        heads = getattr(model, "num_key_value_heads", None) or model.num_attention_heads
        tokens = max(shape.rows * (shape.width + evaluate.max_new_tokens) for shape in self.probes)
        return 2 * self.width * model.num_hidden_layers * heads * head * tokens

    def changed(self, **sections: dict[str, object]) -> "Asked":
        """The same with other settings."""
        config = self.config
        for name, values in sections.items():
            config = config.model_copy(update={name: getattr(config, name).model_copy(update=values)})
        return replace(self, config=config)


def most(counted: Sequence[Activations]) -> Activations:
    return max(counted, key=lambda one: one.whole, default=Activations(0, 0))


def heaviest(shapes: Sequence[Shape]) -> set[Shape]:
    """Those that may need the most."""
    return {max(shapes, key=lambda s: (s.tokens, s)), max(shapes, key=lambda s: (s.answers, s))} if shapes else set()


def shape_of(examples: Sequence[Example]) -> Shape:
    """As `training.batches.collate` lays them out."""
    width = max(len(e.ids) for e in examples)
    return Shape(len(examples), width, sum(e.targets for e in examples))


def alike(count: int, prompt: int, answer: int) -> list[Example]:
    """Examples of one length, where no facts are at hand."""
    return [Example((0,) * (prompt + answer), prompt, prompt + answer)] * count
