import math

import pytest
import torch

from dft_cluster.errors import InputError
from dft_cluster.patch import Folder, apply, compose, diff, fingerprint, inspect, revert, verify

EMBED, UP = "model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def variant(save, tmp_path):
    """`variant(base, name, {tensor: {flat index: value}}, old_bits)`: the patch with just these changes."""

    def write(base, name, changes, old_bits=True):
        tensors = {tensor: Folder(base).tensor(tensor) for tensor in Folder(base).names}
        for tensor, values in changes.items():
            for index, value in values.items():
                tensors[tensor].view(-1)[index] = value
        return diff(base, save(f"{name}-model", tensors), tmp_path / name, old_bits=old_bits).path

    return write


@pytest.fixture
def base(save, tensors):
    return save("base", tensors)


def at(folder, tensor, index):
    return Folder(folder).flat(tensor, index, index + 1)


def test_without_overlap(base, variant, tmp_path):
    one = variant(base, "one", {EMBED: {3: 1.5}, UP: {1_050_000: 2.0}})
    two = variant(base, "two", {EMBED: {4: 2.5}})
    both = variant(base, "both", {EMBED: {3: 1.5, 4: 2.5}, UP: {1_050_000: 2.0}})
    wanted = inspect(both).result_fingerprint
    for known in (None, base):
        made = compose([one, two], tmp_path / "made", base=known)
        assert made.changed == 3
        assert made.result_fingerprint == (wanted if known else "")
        assert apply(made.path, base, tmp_path / f"out-{known is None}") == wanted
        assert verify(made.path, tmp_path / f"out-{known is None}").state == "patched"
        assert verify(made.path, base).state == "base"
        assert revert(made.path, tmp_path / "out-True", tmp_path / f"back-{known is None}") == fingerprint(base)


def test_where_they_agree(base, variant, tmp_path):
    one = variant(base, "one", {EMBED: {3: 1.5, 9: 1.0}})
    two = variant(base, "two", {EMBED: {3: 1.5, 4: 2.5}})
    made = compose([one, two], tmp_path / "made")
    assert made.changed == 3
    apply(made.path, base, tmp_path / "out")
    assert at(tmp_path / "out", EMBED, 3) == 1.5


def test_conflicts_are_counted_by_parameter(base, variant, tmp_path):
    one = variant(base, "one", {EMBED: {3: 1.5, 4: 1.0, 5: 7.0}, UP: {0: 1.0, 1_099_999: 4.0}})
    two = variant(base, "two", {EMBED: {3: 1.5, 4: 2.0, 5: 8.0}, UP: {1_099_999: 3.0}})
    with pytest.raises(InputError) as caught:
        compose([one, two], tmp_path / "made")
    for part in (f"2 elements of {EMBED}", f"1 elements of {UP}", str(one), str(two), "last, sum, largest"):
        assert part in str(caught.value)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [("last", [2.0, 1.5, 6.0, 0.5]), ("sum", [1.5, 1.5, 6.0, -8.0]), ("largest", [2.0, 1.5, 6.0, -8.0])],
)
def test_rules(save, variant, tmp_path, rule, wanted):
    base = save("base", {"a": torch.tensor([0.25, 0.5, 1.0, 1.0]), "b": torch.zeros(4)})
    one = variant(base, "one", {"a": {0: -1.0, 1: 1.5, 3: -8.0}})
    two = variant(base, "two", {"a": {0: 1.0, 3: 1.5}})
    three = variant(base, "three", {"a": {0: 2.0, 2: 6.0, 3: 0.5}})
    made = compose([one, two, three], tmp_path / "made", rule=rule)
    apply(made.path, base, tmp_path / "out")
    assert Folder(tmp_path / "out").tensor("a").tolist() == wanted
    assert inspect(made.path).metadata["rule"] == rule


def test_largest_keeps_the_bits_of_the_one_it_takes(save, variant, tmp_path):
    """1 + (1e-30 - 1) is zero in float64; the patch's value is not."""
    base = save("base", {"a": torch.ones(2)})
    one, two = variant(base, "one", {"a": {0: 1e-30}}), variant(base, "two", {"a": {0: 1.5}})
    made = compose([two, one], tmp_path / "made", rule="largest")
    apply(made.path, base, tmp_path / "out")
    assert at(tmp_path / "out", "a", 0) == torch.tensor(1e-30)


def test_of_equals_the_first_is_the_largest(save, variant, tmp_path):
    base = save("base", {"a": torch.zeros(2).bfloat16()})
    one, two = variant(base, "one", {"a": {0: 3.0}}), variant(base, "two", {"a": {0: -3.0}})
    made = compose([two, one], tmp_path / "made", rule="largest")
    apply(made.path, base, tmp_path / "out")
    assert at(tmp_path / "out", "a", 0) == -3.0


def test_a_sum_that_comes_back_to_the_base_is_no_change(save, variant, tmp_path):
    base = save("base", {"a": torch.zeros(2)})
    one, two = variant(base, "one", {"a": {0: 3.0}}), variant(base, "two", {"a": {0: -3.0}})
    made = compose([two, one], tmp_path / "made", rule="sum")
    assert (made.changed, made.result_fingerprint) == (0, fingerprint(base))


@pytest.mark.parametrize("value", [math.inf, math.nan, 60000.0])
def test_sums_must_be_finite(save, variant, tmp_path, value):
    base = save("base", {"a": torch.ones(2).half()})
    one, two = variant(base, "one", {"a": {0: value}}), variant(base, "two", {"a": {0: 50000.0}})
    with pytest.raises(InputError, match="a: the rule 'sum' does not give finite numbers"):
        compose([one, two], tmp_path / "made", rule="sum")
    made = compose([two, one], tmp_path / "made", rule="last")
    apply(made.path, base, tmp_path / "out")
    assert torch.equal(at(tmp_path / "out", "a", 0).view(torch.int16), torch.tensor([value]).half().view(torch.int16))


def test_integers_have_no_sum(save, variant, tmp_path):
    base = save("base", {"a": torch.tensor([1, 2])})
    one, two = variant(base, "one", {"a": {0: 3}}), variant(base, "two", {"a": {0: 4}})
    with pytest.raises(InputError, match=r"a: torch\.int64 has no sums"):
        compose([one, two], tmp_path / "made", rule="sum")


def test_without_old_bits_the_base_is_asked_for(base, variant, tmp_path):
    one = variant(base, "one", {EMBED: {3: 1.5, 4: 1.0}}, old_bits=False)
    two = variant(base, "two", {EMBED: {4: 2.0}})
    with pytest.raises(InputError, match="needs old bits"):
        compose([one, two], tmp_path / "made", rule="sum")
    with pytest.raises(InputError, match="name the base"):
        compose([one, two], tmp_path / "made", rule="last")
    made = compose([one, two], tmp_path / "made", rule="sum", base=base)
    assert apply(made.path, base, tmp_path / "out") == made.result_fingerprint
    assert at(tmp_path / "out", EMBED, 4) == (1.0 + 2.0 - at(base, EMBED, 4).double()).bfloat16()
    with pytest.raises(InputError, match="without old bits"):
        revert(made.path, tmp_path / "out", tmp_path / "back")


def test_disjoint_tensors_without_old_bits_need_no_base(base, variant, tmp_path):
    one = variant(base, "one", {EMBED: {3: 1.5}}, old_bits=False)
    two = variant(base, "two", {UP: {3: 1.5}}, old_bits=False)
    made = compose([one, two], tmp_path / "made")
    assert apply(made.path, base, tmp_path / "out") == made.result_fingerprint


def test_bases_that_differ_are_named(base, save, tensors, edit, tmp_path):
    tensors["extra.steps"] += 1
    other = save("other", tensors)
    with pytest.raises(InputError) as caught:
        compose([edit(base, "one"), edit(other, "two")], tmp_path / "made")
    assert fingerprint(base) in str(caught.value)
    assert fingerprint(other) in str(caught.value)
    with pytest.raises(InputError, match=fingerprint(other)):
        compose([tmp_path / "one", tmp_path / "one"], tmp_path / "made", base=other)


def test_a_stack_given_side_by_side_is_told_so(base, edit, tmp_path):
    one = edit(base, "one")
    apply(one, base, tmp_path / "patched")
    with pytest.raises(InputError, match="use --chain"):
        compose([one, edit(tmp_path / "patched", "two", seed=2)], tmp_path / "made")


@pytest.mark.parametrize(
    ("count", "options", "complaint"),
    [
        (1, {}, "two patches"),
        (2, {"rule": "first"}, "last, sum, largest"),
        (2, {"rule": "sum", "chain": True}, "none"),
    ],
)
def test_what_makes_no_sense(base, edit, tmp_path, count, options, complaint):
    with pytest.raises(InputError, match=complaint):
        compose([edit(base, "one")] * count, tmp_path / "made", **options)


def test_it_says_what_it_is_made_of(base, edit, tmp_path):
    one, two = edit(base, "one"), edit(base, "two", seed=2)
    made = compose([one, two], tmp_path / "made", rule="last")
    metadata = inspect(made.path).metadata
    assert metadata["method"] == "compose"
    assert inspect(one).checksum in metadata["composed_of"]
    assert inspect(two).checksum in metadata["composed_of"]
