import pytest
import torch
from safetensors.torch import load_file, save_file

from dft_cluster.patch import apply, fingerprint, verify

EMBED, UP, NORM = "model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "model.norm.weight"


@pytest.fixture
def made(save, tensors, edit, tmp_path):
    base = save("base", tensors)
    patch = edit(base, "patch", only=(EMBED, UP))
    apply(patch, base, tmp_path / "patched")
    return patch, base, tmp_path / "patched"


def disturb(folder, name, index):
    file = folder / "model-0.safetensors"
    tensors = load_file(file)
    tensors[name].view(-1)[index] = 77
    save_file(tensors, file)


def test_base_and_patched(made):
    patch, base, patched = made
    seen = verify(patch, base)
    assert (seen.state, seen.unlike_base, seen.unlike_patched) == ("base", None, EMBED)
    seen = verify(patch, patched)
    assert (seen.state, seen.unlike_base, seen.unlike_patched) == ("patched", EMBED, None)
    assert seen.fingerprint == fingerprint(patched)


def test_an_element_that_the_patch_changes(made):
    patch, base, patched = made
    place = (load_file(base / "model-0.safetensors")[UP] != load_file(patched / "model-0.safetensors")[UP]).nonzero()[9]
    disturb(patched, UP, int(place[0]) * 1000 + int(place[1]))
    seen = verify(patch, patched)
    assert (seen.state, seen.unlike_base, seen.unlike_patched) == ("neither", EMBED, UP)
    assert seen.detail == f"{UP} is neither: element {tuple(place.tolist())} holds neither the old nor the new bits"


def test_an_element_beside_them(made):
    patch, base, patched = made
    same = load_file(base / "model-0.safetensors")[UP] == load_file(patched / "model-0.safetensors")[UP]
    disturb(base, UP, int(same.view(-1).nonzero()[-1]))
    seen = verify(patch, base)
    assert (seen.state, seen.unlike_base) == ("neither", UP)
    assert "outside the patch's places" in seen.detail


def test_a_tensor_that_the_patch_leaves_alone(made):
    patch, base, _ = made
    disturb(base, NORM, 2)
    seen = verify(patch, base)
    assert (seen.state, seen.unlike_base) == ("neither", NORM)
    assert "leaves it as it is" in seen.detail


def test_half_of_the_tensors(made):
    patch, base, patched = made
    tensors = load_file(base / "model-0.safetensors")
    tensors[EMBED] = load_file(patched / "model-0.safetensors")[EMBED]
    save_file(tensors, base / "model-0.safetensors")
    seen = verify(patch, base)
    assert (seen.state, seen.unlike_base, seen.unlike_patched) == ("neither", EMBED, UP)
    assert "some the patched" in seen.detail


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_other_forms(made, save, tensors, change):
    if change == "missing":
        del tensors[NORM]
    else:
        tensors[NORM if change == "shape" else "model.more"] = torch.ones(17)
    seen = verify(made[0], save("other", tensors))
    assert seen.state == "neither"
    assert seen.unlike_base == ("model.more" if change == "extra" else NORM)
