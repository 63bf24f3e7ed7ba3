"""Which module of a block is its MLP, told by shapes; and what is said where none is, or several are."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from dft_cluster.errors import InputError
from dft_cluster.models.mlp import down_projections
from dft_cluster.models.structure import parameters, skeleton
from tests import tiny


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_one_down_projection_in_each_block(name: str, tmp_path: Path) -> None:
    folder = tiny.architecture(name, tmp_path / "model")
    places = down_projections(skeleton(folder))
    shapes = {p.name: p.shape for p in parameters(folder)}
    assert [place.layer for place in places] == [0, 1]
    for place in places:
        assert (place.hidden, place.inner) in {(32, 64), (32, 128)}
        wanted = (place.inner, place.hidden) if place.stored_in_out else (place.hidden, place.inner)
        assert shapes[place.weight] == wanted
    assert all(place.stored_in_out for place in places) == ("GPT2" in type(skeleton(folder)).__name__)


def test_a_model_without_an_mlp_is_told_what_was_looked_for() -> None:
    plain = torch.nn.Linear(2, 2)
    with pytest.raises(InputError, match="no list of blocks"):
        down_projections(plain)
    blocks = torch.nn.Module()
    blocks.layers = torch.nn.ModuleList([torch.nn.Sequential(torch.nn.Linear(4, 4))])
    blocks.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(hidden_size=4))
    with pytest.raises(InputError, match=r"layers\.0 has none; looked for.*hidden size 4 to.*The block has 0 4→4"):
        down_projections(blocks)


@pytest.mark.parametrize("config", [SimpleNamespace(n_embd=4), SimpleNamespace(hidden_size=[4, 8])])
def test_a_config_without_a_hidden_size_is_told(config: Any) -> None:
    model = torch.nn.Module()
    model.layers = torch.nn.ModuleList([torch.nn.Linear(4, 4)])
    model.config = SimpleNamespace(get_text_config=lambda: config)
    with pytest.raises(InputError, match=r"model\.name: .*SimpleNamespace has no hidden_size .*attribute_map"):
        down_projections(model)


def convolving(kind: str, **own: Any) -> torch.nn.Module:
    config = AutoConfig.for_model(kind, vocab_size=64, hidden_size=32, num_hidden_layers=2, **own)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def test_a_convolution_is_no_mixture_of_experts() -> None:
    """It mixes tokens: an MLP beside it is found, and the maps around it are none (Mamba's look like one)."""
    kinds = {"layer_types": ["conv", "full_attention"], "num_attention_heads": 4, "num_key_value_heads": 2}
    beside = down_projections(convolving("lfm2", intermediate_size=64, block_auto_adjust_ff_dim=False, **kinds))
    assert [(one.name, one.inner) for one in beside] == [(f"model.layers.{i}.feed_forward.w2", 64) for i in (0, 1)]
    with pytest.raises(
        InputError, match=r"layers\.0 has none; .*modules that convolve.*mixer\.in_proj 32→128"
    ) as caught:
        down_projections(convolving("mamba"))
    assert "experts" not in str(caught.value)


def test_a_mixture_of_experts_is_refused() -> None:
    def expert() -> torch.nn.Module:
        one = torch.nn.Module()
        one.up, one.down = torch.nn.Linear(4, 8), torch.nn.Linear(8, 4)
        return one

    block = torch.nn.Module()
    block.experts = torch.nn.ModuleDict({"a": expert(), "b": expert()})
    model = torch.nn.Module()
    model.layers = torch.nn.ModuleList([block])
    model.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(hidden_size=4))
    with pytest.raises(InputError, match="mixture of experts"):
        down_projections(model)
