from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dft_cluster.facts.layout import Example
from dft_cluster.training.batches import collate, mixed, shuffled, split, steps


@st.composite
def some_examples(draw, least=1, most=12):
    """Examples that can be told apart by their first token."""
    shapes = draw(
        st.lists(st.tuples(st.integers(1, 5), st.integers(1, 4), st.booleans()), min_size=least, max_size=most)
    )
    return [
        Example(tuple(range(100 * i, 100 * i + before + answer + eos)), before, before + answer)
        for i, (before, answer, eos) in enumerate(shapes)
    ]


def first_tokens(batch):
    return batch.ids[:, 0].tolist()


@given(some_examples(), st.integers(0, 3))
def test_a_batch_says_at_each_position_what_comes_next(examples, pad):
    batch = collate(examples, pad)
    assert batch.ids.shape == batch.mask.shape
    said = list(zip(batch.rows.tolist(), batch.columns.tolist(), batch.targets.tolist(), strict=True))
    for row, example in enumerate(examples):
        size = len(example.ids)
        assert batch.ids[row].tolist() == [*example.ids, *[pad] * (batch.ids.shape[1] - size)]
        assert batch.mask[row].tolist() == [1] * size + [0] * (batch.ids.shape[1] - size)
        own = [(place, token) for of, place, token in said if of == row]
        assert own == [(p, example.ids[p + 1]) for p in range(example.start - 1, size - 1)]
    assert batch.rows.tolist() == sorted(batch.rows.tolist())


@given(some_examples(), st.none() | st.integers(1, 40))
def test_a_share_is_cut_by_length_and_no_part_is_too_large(examples, tokens):
    parts = split(examples, tokens)
    in_order = examples if tokens is None else sorted(examples, key=lambda e: len(e.ids))
    assert [e for part in parts for e in part] == in_order
    for part in parts:
        assert part
        if tokens is not None and len(part) > 1:
            assert len(part) * max(len(e.ids) for e in part) <= tokens
    if tokens is None:
        assert len(parts) == 1


def test_a_share_is_not_cut_more_than_it_must():
    examples = [Example(tuple(range(4)), 1, 4)] * 6
    assert [len(part) for part in split(examples, 12)] == [3, 3]
    assert [len(part) for part in split(examples, 3)] == [1] * 6
    assert split([], 5) == []


def taken(examples, world, **more):
    """The steps of every rank of a group."""
    settings = {"batch": 4, "epochs": 2, "pad": 0, "seed": 3, "round_": 1} | more
    return [list(steps(examples, rank=rank, world=world, **settings)) for rank in range(world)]


@given(some_examples(), st.integers(1, 5), st.integers(1, 6), st.none() | st.integers(4, 30))
def test_the_ranks_shares_are_the_batch(examples, world, batch, tokens):
    ranks = taken(examples, world, batch=batch, tokens_per_batch=tokens)
    alone = taken(examples, 1, batch=batch)[0]
    assert {len(rank) for rank in ranks} == {len(alone)}
    for *of_ranks, whole in zip(*ranks, alone, strict=True):
        assert len({len(step.micro) for step in of_ranks}) == 1, "all ranks step equally often"
        mine = Counter(t for step in of_ranks for micro in step.micro if micro for t in first_tokens(micro))
        assert mine == Counter(t for micro in whole.micro for t in first_tokens(micro))
        assert {(step.group_targets, step.tokens) for step in of_ranks} == {(whole.group_targets, whole.tokens)}
        counted = sum(len(m.targets) for step in of_ranks for m in step.micro if m)
        assert counted == whole.group_targets
        assert sum(int(m.mask.sum()) for step in of_ranks for m in step.micro if m) == whole.tokens


@given(some_examples(), st.integers(1, 6), st.integers(1, 3))
def test_every_fact_comes_once_an_epoch(examples, batch, epochs):
    (rank,) = taken(examples, 1, batch=batch, epochs=epochs)
    seen = [t for step in rank for micro in step.micro for t in first_tokens(micro)]
    every = sorted(e.ids[0] for e in examples)
    assert len(seen) == epochs * len(every)
    assert all(sorted(seen[at : at + len(every)]) == every for at in range(0, len(seen), len(every)))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_both_groups_see_the_same_facts_in_the_same_batches(world):
    old = [Example((10 + i, 50, *[7] * (i % 4 + 1)), 2, 3 + i % 4) for i in range(11)]
    new = [Example((10 + i, 50, *[8] * (3 - i % 3)), 2, 5 - i % 3) for i in range(11)]
    for ours, theirs in zip(taken(old, world), taken(new, world), strict=True):
        for mine, other in zip(ours, theirs, strict=True):
            assert [m and first_tokens(m) for m in mine.micro] == [m and first_tokens(m) for m in other.micro]


def test_a_rank_without_facts_takes_part_with_none():
    examples = [Example((i, 1), 1, 2) for i in range(4)]
    ranks = taken(examples, 3, batch=3, epochs=1)
    assert [[m is None for m in step.micro] for step in ranks[0]] == [[False], [False]]
    assert [[m is None for m in step.micro] for step in ranks[2]] == [[False], [True]]


def test_a_rank_with_fewer_parts_is_filled_up():
    long, short = Example(tuple(range(10)), 1, 10), Example((1, 2), 1, 2)
    ranks = [
        list(steps([long, short, long, short], batch=4, epochs=1, rank=r, world=2, pad=0, seed=s, round_=1, tokens_per_batch=10))
        for s in range(20) for r in range(2)
    ]  # fmt: skip
    counts = [[m is None for m in rank[0].micro] for rank in ranks]
    assert [False, True] in counts, "some seed gives one rank both long examples"
    assert all(len(a) == len(b) for a, b in zip(counts[::2], counts[1::2], strict=True))


def test_the_order_depends_on_seed_round_and_epoch_alone():
    orders = {(s, r, e): shuffled(50, s, r, e) for s in range(3) for r in range(3) for e in range(3)}
    assert len({tuple(order) for order in orders.values()}) == 27
    torch.manual_seed(99)
    before = torch.get_rng_state()
    assert all(shuffled(50, *key) == order and sorted(order) == list(range(50)) for key, order in orders.items())
    assert torch.equal(before, torch.get_rng_state()), "nobody else's random numbers are used up"


def test_mixed_numbers_are_seeds_and_differ():
    seeds = [mixed(a, b, c) for a in (0, 1, 2**40) for b in range(20) for c in range(20)]
    assert len(set(seeds)) == len(seeds) and all(0 <= seed < 2**63 for seed in seeds)
    assert mixed(1, 2) != mixed(2, 1) != mixed(1, 2, 0)
