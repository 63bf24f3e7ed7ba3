import pytest
import torch
from torch import nn

from dft_cluster.errors import InputError
from dft_cluster.patch import Folder, Patch, apply, diff, patched


class Tiny(nn.Module):
    """An embedding, its tied head, a buffer, and layers in two dtypes."""

    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(3)
        self.embed = nn.Embedding(40, 8, _weight=torch.randn(40, 8, generator=draw).bfloat16())
        self.up = nn.Linear(8, 1200, bias=False)
        self.up.weight = nn.Parameter(torch.randn(1200, 8, generator=draw))
        self.register_buffer("scale", torch.randn(3, generator=draw).half())
        self.head = nn.Linear(8, 40, bias=False)
        self.head.weight = self.embed.weight if tied else nn.Parameter(self.embed.weight.detach().clone())


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def bits(state: dict[str, torch.Tensor]) -> dict[str, bytes]:
    return {name: tensor.view(-1).view(torch.uint8).numpy().tobytes() for name, tensor in state.items()}


@pytest.fixture
def edited(save, tmp_path):
    """`edited(model, names, change, old_bits)`: a base with these tensors, and a patch that changes some."""

    def write(model, names=("embed.weight", "up.weight", "scale"), change=("embed.weight", "scale"), old_bits=True):
        tensors = {name: tensor for name, tensor in state(model).items() if name in names}
        base = save("base", tensors)
        for name in change:
            tensors[name][..., 1] = float("nan")
            tensors[name][..., 2] += 1
        return diff(base, save("other", tensors), tmp_path / "patch", old_bits=old_bits).path

    return write


@pytest.mark.parametrize("old_bits", [True, False])
def test_on_and_off_bit_for_bit(edited, tmp_path, old_bits):
    model = Tiny()
    patch = edited(model, old_bits=old_bits)
    before = bits(state(model))
    apply(patch, tmp_path / "base", tmp_path / "patched")
    folder = Folder(tmp_path / "patched")
    with patched(model, patch) as same:
        assert same is model
        inside = bits(state(model))
        for name in folder.names:
            assert inside[name] == bits({name: folder.tensor(name)})[name]
        assert inside["head.weight"] == inside["embed.weight"] != before["embed.weight"]
        assert model.head.weight is model.embed.weight
    assert bits(state(model)) == before


def test_off_also_after_an_error_and_without_the_file(edited):
    model = Tiny()
    patch = edited(model)
    before = bits(state(model))
    with pytest.raises(KeyError, match="inside"), patched(model, patch):
        patch.unlink()
        assert bits(state(model)) != before
        raise KeyError("inside")
    assert bits(state(model)) == before


def test_two_patches_one_within_the_other(save, edited, tmp_path):
    model = Tiny()
    lower = edited(model)
    before = bits(state(model))
    with patched(model, lower):
        tensors = {name: tensor for name, tensor in state(model).items() if name != "head.weight"}
        middle = save("middle", tensors)
        tensors["embed.weight"][5] = 3
        upper = diff(middle, save("top", tensors), tmp_path / "upper").path
        with patched(model, upper):
            assert model.embed.weight[5, 0] == 3
        with pytest.raises(InputError, match="differs in"), patched(model, lower):
            pass
    assert bits(state(model)) == before


def test_an_open_patch_can_be_used_again(edited):
    model = Tiny()
    before = bits(state(model))
    with Patch(edited(model)) as patch:
        for _ in range(2):
            with patched(model, patch):
                assert bits(state(model)) != before
            assert bits(state(model)) == before


def test_tied_in_the_model_and_stored_twice(edited):
    model = Tiny()
    names = ("embed.weight", "head.weight")
    patch = edited(model, names, names)
    before = bits(state(model))
    with patched(model, patch):
        assert bits(state(model)) != before
    assert bits(state(model)) == before


def test_a_patch_that_unties_does_not_fit_a_tied_model(edited):
    model = Tiny()
    patch = edited(model, ("embed.weight", "head.weight"), ("head.weight",))
    before = bits(state(model))
    with pytest.raises(InputError, match="the model ties them"), patched(model, patch):
        pass
    assert bits(state(model)) == before
    with patched(untied := Tiny(tied=False), patch):
        assert not torch.equal(untied.embed.weight, untied.head.weight)


@pytest.mark.parametrize("check", [True, False])
def test_another_base_is_refused_and_left_alone(edited, check):
    patch = edited(Tiny())
    model = Tiny()
    with torch.no_grad():
        model.embed.weight[7, 2] += 1
    before = bits(state(model))
    refused = pytest.raises(InputError, match=r"is for the base .* differs in embed\.weight")
    with refused, patched(model, patch, check=check):
        pass
    assert bits(state(model)) == before


def test_a_difference_where_the_patch_does_not_reach(edited):
    patch = edited(Tiny())
    model = Tiny()
    with torch.no_grad():
        model.up.weight[7, 2] += 1
    with pytest.raises(InputError, match=r"differs in up\.weight"), patched(model, patch):
        pass
    with patched(model, patch, check=False):
        assert model.embed.weight[0, 1].isnan()


def test_names_can_be_mapped(edited):
    model = nn.ModuleDict({"inner": Tiny()})
    patch = edited(model["inner"])
    with pytest.raises(InputError, match=r"has no embed\.weight"), patched(model, patch):
        pass
    with patched(model, patch, rename=lambda name: f"inner.{name}"):
        assert model["inner"].embed.weight[0, 1].isnan()
    assert not model["inner"].embed.weight.isnan().any()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            lambda m: m.float(),
            r"embed\.weight is torch\.float32, not torch\.bfloat16; load the model with dtype",
        ),
        (lambda m: m.to("meta"), "meta"),
        (lambda m: setattr(m, "embed", nn.Embedding(41, 8)), r"shape \(41, 8\), not \(40, 8\)"),
        (lambda m: setattr(m.embed.weight, "data", m.embed.weight.data.t().contiguous().t()), "contiguous"),
    ],
)
def test_models_that_do_not_fit(edited, change, complaint):
    patch = edited(Tiny())
    model = Tiny()
    change(model)
    with pytest.raises(InputError, match=complaint), patched(model, patch):
        pass


def test_without_old_bits_there_is_nothing_to_compare(edited):
    with (
        pytest.raises(InputError, match="check=True"),
        patched(Tiny(), edited(Tiny(), old_bits=False), check=False),
    ):
        pass


def test_gradients_go_on(edited):
    model = Tiny()
    with patched(model, edited(model, change=("up.weight",))):
        assert model.up.weight.requires_grad
        model.up(torch.ones(1, 8)).nansum().backward()
    assert model.up.weight.grad is not None
