import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    MixtralConfig,
    MixtralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from dft_cluster.errors import InputError
from dft_cluster.models import structure
from dft_cluster.models.structure import adaptable, parameters, read_config, skeleton
from dft_cluster.patch.folder import Folder
from tests import tiny


def rewritten(folder, change):
    """The folder with its tensors changed."""
    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors), folder / "model.safetensors", {"format": "pt"})
    return folder


def reconfigured(folder, **values):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    return folder


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_every_element_is_covered_once(tmp_path, name):
    folder = tiny.architecture(name, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(folder)
    found = parameters(folder)
    assert [p.name for p in found] == [n for n, _ in model.named_parameters()]
    assert [p.index for p in found] == list(range(len(found)))
    assert [p.shape for p in found] == [tuple(w.shape) for w in model.parameters()]
    assert sum(p.numel for p in found) == sum(w.numel() for w in model.parameters())


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_the_saved_tensor_is_the_loaded_one(tmp_path, name):
    folder = tiny.architecture(name, tmp_path)
    files, loaded = Folder(folder), dict(AutoModelForCausalLM.from_pretrained(folder).named_parameters())
    for p in parameters(folder):
        assert torch.equal(files.tensor(p.saved), loaded[p.name]), p.name
    assert len({p.saved for p in parameters(folder)}) == len(loaded)


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_layers_and_kinds(tmp_path, name):
    for p in parameters(tiny.architecture(name, tmp_path)):
        layer = re.search(r"\.(\d+)\.", p.name)
        assert p.layer == (int(layer[1]) if layer else None), p.name
        right = (
            "norm" if re.search(r"norm|ln_", p.name)
            else "attention" if "attn" in p.name or "attention" in p.name
            else "mlp" if re.search(r"mlp|\.fc\d", p.name)
            else "head" if "lm_head" in p.name
            else "embedding"
        )  # fmt: skip
        assert p.kind == right, p.name


def test_tied_weights_are_one(tmp_path):
    tied, free = (parameters(tiny.model(tmp_path / str(tied), tied=tied)) for tied in (True, False))
    assert len(free) == len(tied) + 1
    assert [p.name for p in free if p.kind == "head"] == ["lm_head.weight"]
    assert not [p for p in tied if p.kind == "head"]
    assert all(p.copies == () for p in tied + free)


def test_tied_weights_saved_twice_know_their_copy(tmp_path):
    folder = rewritten(tiny.model(tmp_path), lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"].clone()})
    found = {p.name: p for p in parameters(folder)}
    assert found["model.embed_tokens.weight"].saved == "model.embed_tokens.weight"
    assert found["model.embed_tokens.weight"].copies == ("lm_head.weight",)


def test_tied_weights_saved_under_the_other_name(tmp_path):
    def renamed(tensors):
        return {("lm_head.weight" if k == "model.embed_tokens.weight" else k): v for k, v in tensors.items()}

    first, *_ = parameters(rewritten(tiny.model(tmp_path), renamed))
    assert (first.name, first.saved, first.copies) == ("model.embed_tokens.weight", "lm_head.weight", ())


def test_tied_weights_whose_copies_differ_are_refused(tmp_path):
    folder = rewritten(tiny.model(tmp_path), lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"] + 1})
    with pytest.raises(InputError, match=r"tied, but its copies model\.embed_tokens\.weight and lm_head\.weight"):
        parameters(folder)


def test_a_file_may_leave_the_models_prefix_out(tmp_path):
    folder = rewritten(
        tiny.architecture("gpt2", tmp_path), lambda t: {k.removeprefix("transformer."): v for k, v in t.items()}
    )
    found = parameters(folder)
    assert {p.name.removeprefix("transformer.") for p in found} == {p.saved for p in found}


def test_tensors_that_are_no_parameters_do_no_harm(tmp_path):
    def buffered(tensors):
        return tensors | {"transformer.h.0.attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.uint8)}

    plain = parameters(tiny.architecture("gpt2", tmp_path / "a"))
    assert parameters(rewritten(tiny.architecture("gpt2", tmp_path / "b"), buffered)) == plain


def test_the_skeleton_costs_no_memory(tmp_path):
    assert all(w.device.type == "meta" for w in skeleton(tiny.model(tmp_path)).parameters())


def test_fused_experts_are_refused_with_the_reason(tmp_path):
    MixtralForCausalLM(
        MixtralConfig(
            vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, num_local_experts=2,
        )
    ).save_pretrained(tmp_path)  # fmt: skip
    with pytest.raises(
        InputError, match=r"one to one.*experts\.gate_up_proj .* is made out of .*experts\.0\.w1\.weight"
    ):
        parameters(tmp_path)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.float64])
def test_weights_of_another_precision_are_refused(tmp_path, dtype):
    def stored(tensors):
        return tensors | {"model.layers.0.mlp.up_proj.weight": tensors["model.layers.0.mlp.up_proj.weight"].to(dtype)}

    with pytest.raises(InputError, match=rf"up_proj\.weight is stored as {dtype}.*fp32, fp16 or bf16"):
        parameters(rewritten(tiny.model(tmp_path), stored))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_usual_precisions_are_taken(tmp_path, dtype):
    assert len(parameters(tiny.model(tmp_path, dtype=dtype))) == 20


def test_every_missing_or_misshapen_tensor_is_counted(tmp_path):
    def broken(tensors):
        left = {k: v for k, v in tensors.items() if "up_proj" not in k and "down_proj" not in k}
        return left | {"model.norm.weight": torch.ones(5)}

    with pytest.raises(InputError) as caught:
        parameters(rewritten(tiny.model(tmp_path), broken))
    assert "is in no file" in str(caught.value) and "and 2 more" in str(caught.value)


def test_a_misshapen_tensor_is_told_with_both_shapes(tmp_path):
    folder = rewritten(tiny.model(tmp_path), lambda t: t | {"model.norm.weight": torch.ones(5)})
    with pytest.raises(InputError, match=re.escape("model.norm.weight is (32,) in the model and (5,) in the file")):
        parameters(folder)


MASKED = BertConfig(vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
BOTH = T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)


@pytest.mark.parametrize(("kind", "config"), [(BertForMaskedLM, MASKED), (T5ForConditionalGeneration, BOTH)])
def test_a_model_that_is_no_causal_one_is_refused(tmp_path, kind, config):
    kind(config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="not a causal language model"):
        parameters(tmp_path)


def test_a_classifier_on_a_causal_model_is_refused(tmp_path):
    with pytest.raises(InputError, match="LlamaForSequenceClassification"):
        read_config(reconfigured(tiny.model(tmp_path), architectures=["LlamaForSequenceClassification"]))


def test_a_config_without_architectures_is_taken_by_its_type(tmp_path):
    assert len(parameters(reconfigured(tiny.model(tmp_path), architectures=None))) == 20


@pytest.mark.parametrize("text", ["{", "{}", '{"model_type": "no-such-type"}', '{"auto_map": {"AutoConfig": "x.Y"}}'])
def test_a_config_that_cannot_be_read_is_refused(tmp_path, text):
    folder = tiny.model(tmp_path)
    (folder / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"model\.name"):
        read_config(folder)


def test_layers_are_not_the_experts_of_one(tmp_path):
    """A list of blocks may hold a longer list."""
    from torch import nn

    from dft_cluster.models.structure import _blocks

    layer = nn.Module()
    layer.experts = nn.ModuleList(nn.Linear(1, 1) for _ in range(5))
    model = nn.Module()
    model.layers = nn.ModuleList([layer])
    assert _blocks(model) == "layers"


def test_an_adapter_beside_a_weight_that_two_modules_share_is_refused(tmp_path, monkeypatch):
    folder = tiny.model(tmp_path)
    weights, model = parameters(folder), skeleton(folder)
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    monkeypatch.setattr(structure, "skeleton", lambda *_: model)
    said = r"cannot be merged into model\.layers\.0\.mlp\.up_proj\.weight.* same weight as model\.layers\.1\."
    with pytest.raises(InputError, match=said):
        adaptable(folder, weights, ("mlp",))
    assert all(p.kind == "attention" for p in adaptable(folder, weights, ("attention",)))
