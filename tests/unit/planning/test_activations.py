from dataclasses import replace

import pytest

from dft_cluster.config import LoraSettings, TrainSettings
from dft_cluster.planning import activations
from dft_cluster.planning.activations import Shape
from tests.unit.planning.cases import small

LORA = LoraSettings()
PLAIN = TrainSettings()
SHAPE = Shape(4, 32, 32)


@pytest.mark.parametrize("train", [PLAIN, TrainSettings(gradient_checkpointing=True), TrainSettings(adapter="lora")])
def test_two_layers_tell_of_any_number(train: TrainSettings) -> None:
    model = small(train.adapter)
    four = activations.training(model, train, LORA, SHAPE)
    two = replace(model, config=model.shrunk(2))
    six = replace(model, config=model.shrunk(6))
    growth = [activations.training(one, train, LORA, SHAPE).whole for one in (two, model, six)]
    assert growth[1] == four.whole
    assert growth[2] - growth[1] == growth[1] - growth[0] > 0


def test_all_layers_counted_at_once_are_what_two_of_them_told() -> None:
    import torch

    from dft_cluster.training.losses import answer_logits, total_nll

    def both(module: torch.nn.Module, batch: activations.Batch) -> None:
        total_nll(answer_logits(module, batch), batch.targets).backward()

    model = small()
    whole = activations._peak(model, PLAIN, LORA, SHAPE, 4, both)
    assert activations.training(model, PLAIN, LORA, SHAPE).whole == whole


def test_logits_are_counted_of_the_answers_tokens_alone() -> None:
    model = small()
    few, many = (activations.evaluation(model, PLAIN, LORA, Shape(4, 32, n)) for n in (32, 96))
    # bf16 logits, their fp32 copy, and log-softmax of it: 10 bytes a word of the vocabulary, for 64 more tokens
    assert many - few >= 10 * 8000 * 64 * 0.8


def test_what_costs_more() -> None:
    model = small()

    def whole(train: TrainSettings = PLAIN, shape: Shape = SHAPE) -> int:
        return activations.training(model, train, LORA, shape).whole

    assert whole(shape=Shape(8, 32, 64)) > 1.9 * whole()
    assert whole(shape=Shape(4, 64, 32)) > whole()
    assert whole(TrainSettings(precision="fp32")) > 1.3 * whole()
    assert whole(TrainSettings(gradient_checkpointing=True)) < whole()
    assert activations.evaluation(model, PLAIN, LORA, SHAPE) < whole()
