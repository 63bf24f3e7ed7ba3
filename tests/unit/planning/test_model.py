from pathlib import Path

import pytest
import torch

from dft_cluster.planning.model import Model, share
from tests import tiny
from tests.integration import runs
from tests.unit.planning.cases import llama_7b, small


def test_llama2_7b_has_the_elements_that_it_has() -> None:
    assert llama_7b().elements == 6_738_415_616


def test_the_linear_maps_of_the_layers_are_adapted() -> None:
    plain, adapted = llama_7b(), llama_7b("lora")
    assert len(plain.theta) == len(plain.weights)
    assert len(adapted.theta) == 32 * 7
    # A [8, in] and B [out, 8] of q, k, v, o (4096 x 4096), gate and up (11008 x 4096) and down (4096 x 11008)
    assert sum(adapted.trained("lora", 8)) == 32 * 8 * (4 * 8192 + 3 * 15104)
    assert sum(plain.trained("none", 8)) == plain.elements


def test_shapes_alone_make_a_model() -> None:
    model = Model.of_shapes("x", {"model.layers.0.mlp.up.weight": (4, 6), "norm.weight": (6,)}, "lora")
    assert model.elements == 30
    assert [p.name for p in model.theta] == ["model.layers.0.mlp.up.weight"]
    assert model.weights[0].layer == 0


@pytest.mark.parametrize(("stage", "elements"), [(1, 5), (2, 5), (3, 6)])
def test_a_shard_is_cut_as_its_stage_cuts(stage: int, elements: int) -> None:
    assert share([3, 7], 2, stage) == elements


def test_fewer_layers_leave_the_config_as_it_was() -> None:
    model = small()
    assert model.shrunk(2).num_hidden_layers == 2
    assert model.config.num_hidden_layers == 4


def test_a_job_s_model_is_its_own(tiny_model: Path, tiny_facts: Path, tmp_path: Path) -> None:
    from dft_cluster.methods.prepare import prepare

    prepared = prepare(runs.config(tiny_model, tiny_facts, tmp_path, train={"adapter": "lora"}))
    model = Model.of_seat(prepared.seat(1))
    assert model.elements == sum(p.numel for p in prepared.parameters)
    assert {p.name for p in model.theta} == {p.name for p in prepared.seat(1).parameters}
    assert len(model.theta) == 2 * 7
    assert model.saved_bytes == 4
    half = tiny.model(tmp_path / "half", dtype=torch.bfloat16)
    assert Model.of_seat(prepare(runs.config(half, tiny_facts, tmp_path))).saved_bytes == 2
