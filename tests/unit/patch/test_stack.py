import pytest

from dft_cluster.errors import InputError
from dft_cluster.patch import apply, compose, diff, fingerprint, inspect, revert


@pytest.fixture
def stack(save, tensors, edit, tmp_path):
    """Three patches, each on top of the last, and the folders between them."""
    folders, patches = [save("model0", tensors)], []
    for level in (1, 2, 3):
        patches.append(edit(folders[-1], f"patch{level}", seed=level, share=0.2))
        apply(patches[-1], folders[-1], tmp_path / f"model{level}")
        folders.append(tmp_path / f"model{level}")
    return patches, folders


def test_inspect_shows_the_chain(stack):
    patches, _ = stack
    checksums = [inspect(patch).checksum for patch in patches]
    for level, patch in enumerate(patches, start=1):
        assert [link.checksum for link in inspect(patch).chain] == checksums[:level]


def test_off_in_the_opposite_order(stack, tmp_path):
    patches, folders = stack
    at = folders[-1]
    for level in (2, 1, 0):
        out = tmp_path / f"back{level}"
        assert revert(patches[level], at, out) == fingerprint(folders[level])
        at = out
    assert {p.name for p in at.iterdir()} == {p.name for p in folders[0].iterdir()}


def test_off_out_of_order_names_the_order(stack, tmp_path):
    patches, folders = stack
    first, second, third = (inspect(patch).checksum[:12] for patch in patches)
    with pytest.raises(InputError, match=rf"revert {third} \(dft\), then {second} \(dft\), then this one") as caught:
        revert(patches[0], folders[3], tmp_path / "out")
    assert fingerprint(folders[3]) in str(caught.value)
    assert fingerprint(folders[1]) in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert first not in str(caught.value)


def test_on_out_of_order_names_the_order(stack, tmp_path):
    patches, folders = stack
    first, second, _ = (inspect(patch).checksum[:12] for patch in patches)
    with pytest.raises(InputError, match=rf"apply {first} \(dft\), then {second} \(dft\), then this one"):
        apply(patches[2], folders[0], tmp_path / "out")
    with pytest.raises(InputError, match=rf"apply {second} \(dft\), then this one"):
        apply(patches[2], folders[1], tmp_path / "out")
    with pytest.raises(InputError, match="in it already"):
        apply(patches[2], folders[3], tmp_path / "out")
    with pytest.raises(InputError, match="not in it"):
        revert(patches[2], folders[2], tmp_path / "out")


def test_a_second_patch_of_the_same_base_is_not_put_on_top(stack, edit, tmp_path):
    patches, folders = stack
    beside = edit(folders[0], "beside", seed=9)
    with pytest.raises(InputError, match=f"{inspect(patches[0]).checksum[:12]}.*was applied first; compose"):
        apply(beside, folders[1], tmp_path / "out")


def test_weights_changed_behind_the_list_are_no_stack(stack, edit):
    _, folders = stack
    (folders[0] / "dft_patches.json").write_bytes((folders[2] / "dft_patches.json").read_bytes())
    assert len(inspect(edit(folders[0], "another", seed=4)).chain) == 1


@pytest.mark.parametrize("text", ["", "[", "3", '[{"checksum": "a"}]', '[{"a": 1}]', "[[1]]", "[" * 100_000])
def test_a_broken_list(save, tensors, edit, text):
    base = save("base", tensors)
    (base / "dft_patches.json").write_text(text)
    with pytest.raises(InputError, match=r"dft_patches\.json is not a list of patches"):
        edit(base, "patch")


def test_a_stack_folds_into_one(stack, tmp_path):
    patches, folders = stack
    made = compose(patches, tmp_path / "all", chain=True)
    assert made.base_fingerprint == fingerprint(folders[0])
    assert made.result_fingerprint == fingerprint(folders[3])
    assert apply(made.path, folders[0], tmp_path / "out") == fingerprint(folders[3])
    assert revert(made.path, folders[3], tmp_path / "back") == fingerprint(folders[0])
    assert inspect(made.path).metadata["rule"] == "chain"


def test_the_upper_part_of_a_stack_folds_too(stack, tmp_path):
    patches, folders = stack
    made = compose(patches[1:], tmp_path / "upper", chain=True)
    seen = inspect(made.path)
    assert [link.checksum for link in seen.chain] == [inspect(patches[0]).checksum, made.checksum]
    assert apply(made.path, folders[1], tmp_path / "out") == fingerprint(folders[3])


def test_folding_in_another_order_names_the_right_one(stack, tmp_path):
    patches, _ = stack
    order = ", then ".join(map(str, patches))
    with pytest.raises(InputError, match=f"this order works: {order}"):
        compose([patches[1], patches[0], patches[2]], tmp_path / "all", chain=True)
    with pytest.raises(InputError, match="no stack") as caught:
        compose([patches[0], patches[2]], tmp_path / "all", chain=True)
    assert "order works" not in str(caught.value)


def test_there_and_back_is_nothing(save, tensors, edit, tmp_path):
    base = save("base", tensors)
    there = edit(base, "there", share=0.3)
    apply(there, base, tmp_path / "patched")

    back = diff(tmp_path / "patched", base, tmp_path / "back")
    made = compose([there, back.path], tmp_path / "nothing", chain=True)
    assert (made.changed, made.result_fingerprint) == (0, made.base_fingerprint)
