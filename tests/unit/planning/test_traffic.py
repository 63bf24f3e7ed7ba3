import pytest

from dft_cluster.planning.traffic import disk, traffic
from tests.unit.planning.cases import asked, config, llama_7b

N = 6_738_415_616


def test_zero_1_sends_the_gradients_twice_round_the_ring_and_the_weights_once() -> None:
    moved = traffic(asked(llama_7b(), config(cluster={"ranks_per_group": 4}, train={"epochs": 3, "batch": 16})))
    assert moved.step == pytest.approx(3 / 4 * (2 * 4 * N + 2 * N))
    assert moved.steps == 3 * 4
    assert moved.deltas == 4 * N
    assert moved.core == pytest.approx(N / 8 + 4 * 0.05 * N)


def test_zero_3_gathers_the_weights_in_both_passes() -> None:
    moved = traffic(asked(llama_7b(), config(cluster={"ranks_per_group": 4}, train={"zero_stage": 3})))
    assert moved.step == pytest.approx(3 / 4 * (2 * 2 * N + 4 * N))


def test_split_batches_reduce_more_often_under_zero_2() -> None:
    train = {"zero_stage": 2, "batch": 16, "tokens_per_batch": 64}  # of 4 facts with 32 tokens each, 2 at once
    moved = traffic(asked(llama_7b(), config(cluster={"ranks_per_group": 4}, train=train)))
    assert moved.step == pytest.approx(3 / 4 * (2 * 2 * 4 * N + 2 * N))


def test_one_group_moves_nothing_between_groups_and_takes_both_sides_steps() -> None:
    alone = traffic(asked(llama_7b(), config(cluster={"groups": 1, "ranks_per_group": 8}, train={"epochs": 1})))
    assert (alone.deltas, alone.core) == (0, 0)
    assert alone.steps == 2 * 8


def test_old_answers_learnt_for_fewer_epochs_take_fewer_steps() -> None:
    fewer = {"train": {"epochs": 4}, "dft": {"old_epochs": 1}}
    alone = traffic(asked(llama_7b(), config(cluster={"groups": 1, "ranks_per_group": 8}, **fewer)))
    paired = traffic(asked(llama_7b(), config(cluster={"ranks_per_group": 4}, **fewer)))
    assert (alone.steps, paired.steps) == ((1 + 4) * 8, 4 * 8)


def test_what_is_added_everywhere_is_sent_and_written_whole() -> None:
    job = asked(llama_7b(), config(cluster={"ranks_per_group": 4}, dft={"rest": 0.3}))
    assert (traffic(job).core, disk(job).checkpoint) == (4 * N, 4 * N)


def test_one_rank_alone_sends_nothing() -> None:
    assert traffic(asked(llama_7b(), config())).step == 0


def test_what_is_written() -> None:
    kept = disk(asked(llama_7b(), config(method={"rounds": 4}, run={"export": True}, warmup={"epochs": 1})))
    assert kept.checkpoint == pytest.approx(N / 8 + 0.2 * N)
    assert kept.patch == pytest.approx(N * (1 / 8 + 2 * 2 * 0.2))
    assert kept.export == kept.base == 2 * N
    assert kept.total == 4 * kept.checkpoint + kept.patch + 4 * N
    whole = disk(asked(llama_7b(), config(method={"name": "full", "rounds": 1})))
    assert whole.checkpoint == 12 * N
    assert whole.patch == 4 * N
