from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from dft_cluster.errors import InputError
from dft_cluster.patch import Folder, Patch, apply, diff, fingerprint, make, revert, verify


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def assert_weights(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    found = Folder(folder)
    assert found.names == sorted(tensors)
    for name, tensor in tensors.items():
        same = found.tensor(name).reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8)
        assert found.dtype(name) == tensor.dtype
        assert torch.equal(*same), name


@pytest.mark.parametrize("files", [1, 4])
@pytest.mark.parametrize("share", [0.0001, 0.05, 0.5, 1.0])
def test_diff_apply_revert(save, tensors, tmp_path, files, share):
    base = save("base", tensors, files)
    before = contents(base)
    draw = torch.Generator().manual_seed(5)
    for tensor in tensors.values():
        mask = torch.rand(tensor.shape, generator=draw) < share
        tensor[mask] = 1 - tensor[mask] if tensor.dtype != torch.bool else ~tensor[mask]
    other = save("other", tensors, 2)
    made = diff(base, other, tmp_path / "patch")
    assert made.base_fingerprint == fingerprint(base)
    assert made.result_fingerprint == fingerprint(other)
    assert made.elements == sum(t.numel() for t in tensors.values())
    assert made.size == made.path.stat().st_size
    assert apply(made.path, base, tmp_path / "patched") == made.result_fingerprint
    assert_weights(tmp_path / "patched", tensors)
    assert (tmp_path / "patched" / "sub" / "notes.txt").read_text() == "carried along"
    assert revert(made.path, tmp_path / "patched", tmp_path / "reverted") == made.base_fingerprint
    assert contents(tmp_path / "reverted") == before == contents(base)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_every_bit_pattern_survives(save, tmp_path, dtype):
    """NaNs with payloads, both zeros, infinities and subnormal numbers, in both directions."""
    draw = torch.Generator().manual_seed(1)
    bits = torch.randint(-(2**31), 2**31, (1 << 17,), dtype=torch.int64, generator=draw).int()
    integers = torch.int32 if dtype == torch.float32 else torch.int16
    old = {"a": bits.to(integers).view(dtype)}
    new = {"a": bits.flip(0).to(integers).view(dtype)}
    assert old["a"].isnan().any()
    base = save("base", old)
    made = make(base, new.get, tmp_path / "patch", {})
    apply(made.path, base, tmp_path / "patched")
    assert_weights(tmp_path / "patched", new)
    revert(made.path, tmp_path / "patched", tmp_path / "reverted")
    assert_weights(tmp_path / "reverted", old)


def test_minus_zero_is_a_change(save, tmp_path):
    made = diff(save("plus", {"a": torch.zeros(9)}), save("minus", {"a": -torch.zeros(9)}), tmp_path / "patch")
    assert made.changed == 9


def test_nothing_changed(save, tensors, tmp_path):
    base = save("base", tensors)
    made = make(base, lambda _: None, tmp_path / "patch", {})
    assert (made.changed, made.tensors, made.base_fingerprint) == (0, 0, made.result_fingerprint)
    apply(made.path, base, tmp_path / "patched")
    assert_weights(tmp_path / "patched", tensors)


def test_without_old_bits(save, tensors, tmp_path, edit):
    base = save("base", tensors)
    with_old, without = edit(base, "with"), edit(base, "without", old_bits=False)
    assert without.stat().st_size < 0.8 * with_old.stat().st_size
    assert apply(without, base, tmp_path / "a") == apply(with_old, base, tmp_path / "b")
    assert verify(without, tmp_path / "a").state == "patched"
    with pytest.raises(InputError, match="without old bits"):
        revert(without, tmp_path / "a", tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_tied_weights_stored_once_and_twice(save, tmp_path):
    shared = torch.randn(8, 4)
    once = save("once", {"embed": shared})
    twice = save("twice", {"embed": shared, "head": shared.clone()})
    changed = shared.clone()
    changed[3, 1] = 9.0
    for base in (once, twice):
        made = make(base, lambda _: changed, tmp_path / "patch", {})
        assert made.changed == len(Folder(base).names)
        apply(made.path, base, tmp_path / f"patched-{base.name}")
        assert_weights(tmp_path / f"patched-{base.name}", dict.fromkeys(Folder(base).names, changed))


def test_tied_weights_written_twice_by_one_program_and_once_by_another(save, tmp_path):
    embed, norm = torch.randn(8, 4), torch.ones(4)
    twice = {"embed": embed, "head": embed.clone(), "norm": norm}
    changed = embed + 1
    for number, (old, new) in enumerate(
        [
            (twice, {"embed": changed, "norm": norm}),
            (twice, {"head": changed, "norm": norm}),
            ({"embed": embed, "norm": norm}, {"embed": changed, "head": changed.clone(), "norm": norm}),
        ]
    ):
        base = save(f"base{number}", old)
        made = diff(base, save(f"other{number}", new), tmp_path / "patch")
        apply(made.path, base, tmp_path / f"patched{number}")
        assert_weights(tmp_path / f"patched{number}", {n: norm if n == "norm" else changed for n in old})
    with pytest.raises(InputError, match="head is only in"):
        diff(save("tied", twice), save("norm", {"norm": norm}), tmp_path / "none")
    with pytest.raises(InputError, match="head is only in"):
        diff(
            save("once", {"embed": embed}),
            save("untied", {"embed": embed, "head": changed}),
            tmp_path / "none",
        )


def test_metadata_come_along_and_any_safetensors_reader_opens_it(save, tensors, tmp_path):
    base = save("base", tensors)
    name = "model.embed_tokens.weight"
    changed = tensors[name].clone()
    changed[0, :3] = 5.0
    metadata = {"method": "dft", "top": "0.05", "metrics": '{"reliability": 99.5}'}
    made = make(base, {name: changed}.get, tmp_path / "patch.safetensors", metadata)
    with safe_open(made.path, "pt") as file:
        stated = file.metadata()
        assert torch.equal(file.get_tensor(f"{name}:old"), tensors[name][0, :3])
        assert torch.equal(file.get_tensor(f"{name}:new"), changed[0, :3])
    assert metadata.items() <= stated.items()
    assert stated["format_version"] == "1"
    assert stated["base_fingerprint"] == fingerprint(base)
    assert stated["checksum"] == made.checksum


def test_the_same_patch_twice_is_the_same_file(save, tensors, tmp_path, edit):
    base = save("base", tensors)
    assert edit(base, "one").read_bytes() == edit(base, "two").read_bytes()
    assert [p.name for p in tmp_path.iterdir() if "partial" in p.name] == []


@pytest.mark.parametrize(
    ("new", "complaint"),
    [(torch.zeros(64, 16), "float32"), (torch.zeros(16, 64).bfloat16(), r"\(16, 64\)")],
)
def test_new_values_in_another_form(save, tensors, tmp_path, new, complaint):
    base = save("base", tensors)
    with pytest.raises(InputError, match=complaint):
        make(base, {"model.embed_tokens.weight": new}.get, tmp_path / "patch", {})
    assert not (tmp_path / "patch").exists()


def test_metadata_that_are_the_patch_s_own(save, tensors, tmp_path):
    with pytest.raises(InputError, match="checksum"):
        make(save("base", tensors), lambda _: None, tmp_path / "patch", {"checksum": "0"})


def test_folders_of_other_forms_have_no_difference(save, tensors, tmp_path):
    other = dict(tensors)
    other["model.norm.weight"] = torch.ones(17)
    del other["extra.steps"]
    with pytest.raises(InputError, match=r"extra\.steps is only in .*base.*model\.norm\.weight is F32 \(16,\)"):
        diff(save("base", tensors), save("other", other), tmp_path / "patch")


def test_linked_files_are_copied(save, tensors, tmp_path, edit):
    """A hub cache's snapshot is a folder of links; the result must stand without it."""
    stored = save("stored", tensors)
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for file in stored.iterdir():
        (snapshot / file.name).symlink_to(file)
    apply(edit(snapshot, "patch"), snapshot, tmp_path / "patched")
    assert not any(path.is_symlink() for path in (tmp_path / "patched").rglob("*"))
    assert (tmp_path / "patched" / "sub" / "notes.txt").read_text() == "carried along"


def test_the_base_is_never_written_into(save, tensors, tmp_path, edit):
    base = save("base", tensors)
    patch = edit(base, "patch")
    for out in (base, base / "inside", tmp_path):
        with pytest.raises(InputError, match=r"lies within|there already"):
            apply(patch, base, out)
    assert not (base / "inside").exists()


def test_from_pretrained_opens_the_result(tmp_path):
    import transformers

    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, vocab_size=50,
        tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).bfloat16()
    model.save_pretrained(tmp_path / "base", max_shard_size="4KB")
    assert len(list((tmp_path / "base").glob("*.safetensors"))) > 1
    with torch.no_grad():
        model.model.embed_tokens.weight[3] += 1
        model.model.layers[1].mlp.up_proj.weight[:, 2] *= 2
    model.save_pretrained(tmp_path / "other")
    made = diff(tmp_path / "base", tmp_path / "other", tmp_path / "patch")
    assert made.tensors == 2
    apply(made.path, tmp_path / "base", tmp_path / "patched")
    loaded = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "patched", dtype="auto")
    tokens = torch.tensor([[1, 3, 7]])
    assert torch.equal(loaded(tokens).logits, model.eval()(tokens).logits)
    assert loaded.lm_head.weight.data_ptr() == loaded.model.embed_tokens.weight.data_ptr()


def test_a_patch_of_many_blocks_is_read_block_by_block(save, tmp_path):
    old = {"a": torch.zeros(5 << 20, dtype=torch.int8)}
    new = {"a": old["a"].clone()}
    places = [0, (1 << 20) - 1, 1 << 20, (3 << 20) + 5, (5 << 20) - 1]
    new["a"][places] = 1
    made = diff(save("base", old), save("other", new), tmp_path / "patch")
    with Patch(made.path) as patch:
        assert patch.parts["a"].counts.tolist() == [2, 1, 0, 1, 1]
    apply(made.path, tmp_path / "base", tmp_path / "patched")
    assert_weights(tmp_path / "patched", new)
