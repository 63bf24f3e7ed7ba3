import hashlib
import json

import pytest
import torch
from pyarrow import fs
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from dft_cluster.config_file import validate
from dft_cluster.methods.artifacts import Overlay, export, make_patch, patch_metadata, write_base
from dft_cluster.models.structure import parameters
from dft_cluster.patch.apply import apply, revert
from dft_cluster.patch.fingerprint import fingerprint
from dft_cluster.patch.folder import Folder
from dft_cluster.runs.parts import Part, Stored, write
from dft_cluster.runs.storage import Storage
from tests import tiny


@pytest.fixture(params=["local", "remote"])
def storage(request, tmp_path):
    made = Storage(str(tmp_path / "run") if request.param == "local" else "mock:///runs/one")
    if made.local is None:
        (tmp_path / "bucket").mkdir()
        made.system = fs.SubTreeFileSystem(str(tmp_path / "bucket"), fs.LocalFileSystem())
    made.make("checkpoints")
    return made


def moved(folder, storage, number, share, seed):
    """A round's part: some elements of every parameter set to others; returns its name and the masters after it."""
    torch.manual_seed(seed)
    name, stored, masters = f"checkpoints/{number}.safetensors", [], {}
    files = Folder(folder)
    for p in parameters(folder):
        values = files.flat(p.saved, 0, p.numel).float() + torch.randn(p.numel) * 1e-3
        mark = (torch.rand(p.numel) < share).int()
        half = p.numel // 2
        stored += [Stored(p.index, 0, values[:half], mark[:half]), Stored(p.index, half, values[half:], mark[half:])]
        masters[p.saved] = (values, mark != 0)
    with storage.writer(name) as stream:
        write(stream, name, stored)
    return name, masters


def expected(folder, *rounds):
    """The base's tensors with every round's elements cast to the file's dtype."""
    right = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        master = tensor.float().flatten()
        for masters in rounds:
            if name in masters:
                values, mark = masters[name]
                master = torch.where(mark, values, master)
        right[name] = master.to(tensor.dtype).reshape(tensor.shape)
    return right


def same(folder, right):
    found = load_file(folder / "model.safetensors")
    assert found.keys() == right.keys()
    for name, tensor in right.items():
        width = {2: torch.int16, 4: torch.int32}[tensor.dtype.itemsize]
        assert found[name].dtype == tensor.dtype and torch.equal(found[name].view(width), tensor.view(width)), name
    return True


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox"])
def test_the_patch_on_the_base_is_the_masters_cast(tmp_path, dtype, name):
    base, storage = tiny.architecture(name, tmp_path / "base", dtype=dtype), Storage(str(tmp_path / "run"))
    storage.make("checkpoints")
    (one, first), (two, second) = moved(base, storage, 1, 0.2, 1), moved(base, storage, 2, 0.05, 2)
    patch = make_patch(base, parameters(base), storage, [[one], [two]], {"method": "dft"}, tmp_path)
    assert patch == tmp_path / "run" / "patch.safetensors"
    apply(patch, base, tmp_path / "new")
    assert same(tmp_path / "new", expected(base, first, second))
    revert(patch, tmp_path / "new", tmp_path / "back")
    assert fingerprint(tmp_path / "back") == fingerprint(base)


def test_patch_and_model_on_any_storage(tmp_path, storage):
    (tmp_path / "scratch").mkdir()
    base = tiny.model(tmp_path / "base", dtype=torch.bfloat16)
    name, masters = moved(base, storage, 1, 0.3, 1)
    patch = make_patch(base, parameters(base), storage, [[name]], {"method": "dft"}, tmp_path / "scratch")
    assert storage.read("patch.safetensors") == patch.read_bytes()
    export(patch, base, storage, tmp_path / "scratch")
    export(patch, base, storage, tmp_path / "scratch")
    folder = storage.fetch("model", tmp_path / "other")
    assert same(folder, expected(base, masters))
    AutoModelForCausalLM.from_pretrained(folder)
    assert len(AutoTokenizer.from_pretrained(folder)) == len(tiny.tokenizer())


def test_no_round_is_an_empty_patch(tmp_path, storage):
    base = tiny.model(tmp_path / "base")
    patch = make_patch(base, parameters(base), storage, [], {"method": "dft"}, tmp_path)
    apply(patch, base, tmp_path / "new")
    assert fingerprint(tmp_path / "new") == fingerprint(base)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tied_weight_saved_twice_changes_twice(tmp_path, dtype):
    base = tiny.model(tmp_path / "base", dtype=dtype)
    tensors = load_file(base / "model.safetensors")
    tensors |= {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    storage = Storage(str(tmp_path / "run"))
    storage.make("checkpoints")
    name, masters = moved(base, storage, 1, 0.5, 1)
    apply(make_patch(base, parameters(base), storage, [[name]], {}, tmp_path), base, tmp_path / "new")
    masters["lm_head.weight"] = masters["model.embed_tokens.weight"]
    assert same(tmp_path / "new", expected(base, masters))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "new", dtype=dtype)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_tensor_that_only_looks_like_a_weight_stays(tmp_path):
    """All-one buffers equal an untouched norm to the bit, and are none."""
    base = tiny.model(tmp_path / "base")
    tensors = load_file(base / "model.safetensors") | {"some.buffer": torch.ones(32)}
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    storage = Storage(str(tmp_path / "run"))
    storage.make("checkpoints")
    name, _ = moved(base, storage, 1, 1.0, 1)
    overlay = Overlay(Folder(base), parameters(base), [Part(storage.fetch(name, tmp_path))])
    assert overlay("some.buffer") is None
    assert overlay("model.norm.weight") is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_warmed_base_is_the_masters_cast_and_stands_on_nothing(tmp_path, storage, dtype):
    (tmp_path / "scratch").mkdir()
    model = tiny.model(tmp_path / "model", dtype=dtype)
    name, masters = moved(model, storage, 1, 1.0, 1)
    write_base(model, parameters(model), storage, [name], tmp_path / "scratch")
    write_base(model, parameters(model), storage, [name], tmp_path / "scratch")
    base = storage.fetch("base", tmp_path / "other")
    assert same(base, expected(model, masters))
    assert {p.name for p in base.iterdir()} == {p.name for p in model.iterdir()}
    left = [info.base_name for info in storage.system.get_file_info(fs.FileSelector(storage.root))]
    assert sorted(left) == ["base", "checkpoints"]


def test_the_metadata_say_where_a_patch_comes_from():
    config = validate({"method": {"top": 0.29}})
    identity = {"config": config.to_json(), "fingerprints": {"model": "m", "facts": "f"}}
    figures = {"reliability": {"exact": 1.0}, "protocol": "greedy", "perplexity": 3.0}
    told = patch_metadata(config, identity, 4, figures)
    assert all(isinstance(value, str) for value in told.values())
    assert (told["method"], told["top"], told["scale"], told["rounds"]) == ("dft", "0.29", "1.0", "4")
    assert told["facts_fingerprint"] == "f"
    assert json.loads(told["metrics"]) == {"reliability": {"exact": 1.0}, "protocol": "greedy"}
    text = json.dumps(config.to_json(), sort_keys=True)
    assert told["config_fingerprint"] == hashlib.sha256(text.encode()).hexdigest()
    plain = patch_metadata(validate({"method": {"name": "full"}}), identity, 4, {})
    assert plain["method"] == "full" and "top" not in plain
