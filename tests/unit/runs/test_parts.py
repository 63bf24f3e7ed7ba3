import hashlib
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from dft_cluster.errors import InputError
from dft_cluster.runs import parts
from dft_cluster.runs.parts import Part, Stored, write

CUTS = st.lists(st.integers(0, 100), max_size=4)


def written(path, fragments, name="part"):
    with path.open("wb") as stream:
        return write(stream, name, fragments)


def bits(tensor):
    return tensor.contiguous().view(torch.int32).tolist()


def odd_values(size, seed=0):
    """Values in which a bit lost would show: −0.0, denormals, infinities, and any others."""
    values = torch.from_numpy(
        np.random.default_rng(seed).integers(-(2**31), 2**31, size, dtype=np.int64).astype(np.int32)
    )
    values = values.view(torch.float32).clone()
    values[torch.isnan(values)] = -0.0
    values[: min(size, 4)] = torch.tensor([-0.0, 1e-45, float("-inf"), 3.0])[: min(size, 4)]
    return values


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(parts, "BLOCK", 16)


def cut(size, where):
    """Fragments of a parameter: (start, stop) between the places named."""
    edges = sorted({0, size, *(w % (size + 1) for w in where)})
    return list(pairwise(edges))


@given(st.integers(1, 100), CUTS, CUTS, st.integers(0, 99))
@settings(max_examples=80, deadline=None)
def test_fragments_come_back_to_the_bit_however_they_are_cut(tmp_path_factory, size, writing, reading, seed):
    old_block, parts.BLOCK = parts.BLOCK, 16
    try:
        before, values = odd_values(size, seed + 1), odd_values(size, seed)
        chosen = torch.from_numpy(np.random.default_rng(seed).random(size) < (seed % 5) / 4).int() * 7
        path = tmp_path_factory.mktemp("p") / "part"
        for mark in (None, chosen):
            written(
                path, [Stored(3, a, values[a:b], None if mark is None else mark[a:b]) for a, b in cut(size, writing)]
            )
            found = before.clone()
            for a, b in cut(size, reading):
                Part(path).overlay(3, a, found[a:b])
            right = values if mark is None else torch.where(mark != 0, values, before)
            assert bits(found) == bits(right)
    finally:
        parts.BLOCK = old_block


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48])
@pytest.mark.parametrize("kept", ["none", "all", "some", "last"])
def test_sizes_around_a_block(tmp_path, small_blocks, size, kept):
    values, mark = odd_values(size), torch.zeros(size, dtype=torch.int32)
    chosen = {
        "none": slice(0, 0),
        "all": slice(None),
        "some": slice(None, None, 3),
        "last": slice(max(0, size - 1), None),
    }
    mark[chosen[kept]] = -1
    written(tmp_path / "p", [Stored(0, 5, values, mark)])
    found = torch.full((size + 10,), 9.0)
    Part(tmp_path / "p").overlay(0, 0, found)
    right = torch.full((size + 10,), 9.0)
    right[5 : 5 + size] = torch.where(mark != 0, values, right[5 : 5 + size])
    assert bits(found) == bits(right)


def test_every_way_to_look_into_a_sparse_fragment(tmp_path, small_blocks):
    values, mark = odd_values(50), torch.tensor([i % 7 in (0, 3) for i in range(50)]).int()
    written(tmp_path / "p", [Stored(0, 10, values, mark)])
    part, right = Part(tmp_path / "p"), torch.full((70,), 9.0)
    right[10:60] = torch.where(mark != 0, values, right[10:60])
    for start in range(70):
        for stop in range(start, 70):
            found = torch.full((stop - start,), 9.0)
            part.overlay(0, start, found)
            assert bits(found) == bits(right[start:stop]), (start, stop)


def test_parameters_do_not_mix(tmp_path):
    ones, twos, threes = torch.ones(3), torch.full((3,), 2.0), torch.full((2,), 3.0)
    written(tmp_path / "p", [Stored(1, 0, ones), Stored(11, 0, twos), Stored(1, 3, threes)])
    part = Part(tmp_path / "p")
    found = {p: torch.zeros(6) for p in (0, 1, 11, 111)}
    for parameter, values in found.items():
        part.overlay(parameter, 0, values)
    assert {p: v.tolist() for p, v in found.items()} == {
        0: [0] * 6, 1: [1, 1, 1, 3, 3, 0], 11: [2, 2, 2, 0, 0, 0], 111: [0] * 6,
    }  # fmt: skip


def test_an_optimizers_state_lies_beside(tmp_path, small_blocks):
    first, second = odd_values(40, 1), odd_values(40, 2)
    written(tmp_path / "p", [
        Stored(0, 0, odd_values(20), None, {"step": torch.tensor([12.0]), "exp_avg": first[:20], "exp_avg_sq": second[:20]}),
        Stored(0, 20, odd_values(20), None, {"step": torch.tensor([12.0]), "exp_avg": first[20:], "exp_avg_sq": second[20:]}),
    ])  # fmt: skip
    part = Part(tmp_path / "p")
    found = torch.zeros(33)
    part.overlay(0, 5, found, "exp_avg")
    assert bits(found) == bits(first[5:38])
    part.overlay(0, 5, found, "exp_avg_sq")
    assert bits(found) == bits(second[5:38])
    assert part.scalar("step") == 12
    part.overlay(0, 5, found, "nothing of that name")
    assert bits(found) == bits(second[5:38])


def test_a_part_without_a_state_says_so(tmp_path):
    written(tmp_path / "p", [Stored(0, 0, torch.ones(3))])
    assert Part(tmp_path / "p").scalar("step") is None


@pytest.mark.parametrize("size", [1, 8, 9, 16, 17, 100])
def test_the_digest_and_size_are_the_files(tmp_path, small_blocks, size):
    mark = (torch.arange(size) % 3 == 0).int()
    said = written(
        tmp_path / "p", [Stored(0, 0, odd_values(size), mark), Stored(1, 0, odd_values(size))], "checkpoints/p"
    )
    content = (tmp_path / "p").read_bytes()
    assert (said.name, said.size, said.sha256) == ("checkpoints/p", len(content), hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize("size", [1, 8, 9, 17, 24])
def test_a_part_is_a_safetensors_file_to_others(tmp_path, small_blocks, size):
    values, mark = odd_values(size), (torch.arange(size) % 3 == 0).int()
    written(tmp_path / "p", [
        Stored(0, 4, values, mark), Stored(1, 0, values, torch.zeros(size, dtype=torch.int32)),
        Stored(2, 0, values, None, {"step": torch.ones(1)}),
    ])  # fmt: skip
    tensors = load_file(tmp_path / "p")
    assert bits(tensors[f"2:0:{size}:values"]) == bits(values)
    assert bits(tensors[f"0:4:{size}:values"]) == bits(values[mark != 0])
    assert np.unpackbits(tensors[f"0:4:{size}:bits"].numpy())[:size].tolist() == mark.tolist()
    assert tensors[f"1:0:{size}:values"].numel() == 0 and tensors[f"2:0:{size}:step"].tolist() == [1]


def test_a_view_into_a_larger_buffer_is_written_as_it_is(tmp_path):
    buffer = odd_values(30)
    written(tmp_path / "p", [Stored(0, 0, buffer[7:19])])
    found = torch.zeros(12)
    Part(tmp_path / "p").overlay(0, 0, found)
    assert bits(found) == bits(buffer[7:19])


def test_a_rank_without_a_share_writes_an_empty_part(tmp_path):
    written(tmp_path / "p", [])
    found = torch.ones(3)
    Part(tmp_path / "p").overlay(0, 0, found)
    assert found.tolist() == [1, 1, 1]


def test_a_part_cut_short_is_refused(tmp_path):
    written(tmp_path / "p", [Stored(0, 0, torch.ones(30))])
    content = (tmp_path / "p").read_bytes()
    for size in (0, 5, 40, len(content) - 1):
        (tmp_path / "p").write_bytes(content[:size])
        with pytest.raises(InputError, match="p"):
            Part(tmp_path / "p")


@pytest.mark.parametrize("size", [1, 16, 17, 40])
def test_what_comes_to_the_values_is_worked_out_block_by_block(tmp_path, small_blocks, size):
    values, more = torch.arange(size, dtype=torch.float32), torch.arange(size, dtype=torch.float32) * 100
    asked = []

    def added(first, stop):
        asked.append((first, stop))
        return more[first:stop]

    written(tmp_path / "p", [Stored(3, 5, values, added=added)])
    out = torch.empty(size)
    Part(tmp_path / "p").overlay(3, 5, out)
    assert bits(out) == bits(values + more)
    assert asked == [(first, min(first + 16, size)) for first in range(0, size, 16)]
    assert bits(values) == bits(torch.arange(size, dtype=torch.float32)), "θ stays as it was"
