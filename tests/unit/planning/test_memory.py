"""Parts against numbers worked out by hand, and what more or less of a setting must do."""

from dataclasses import replace
from typing import Any

import pytest

from dft_cluster.config import LoraSettings
from dft_cluster.methods.prepare import WARM_UP
from dft_cluster.planning import memory
from dft_cluster.planning.asked import Asked, Device
from dft_cluster.planning.memory import CUDA_DEVICE, CUDA_HOST, MIB, PROCESS, Memory
from tests.unit.planning.cases import Formula, asked, config, llama_7b, small

N = 6_738_415_616
LARGEST = 32000 * 4096
LORA = LoraSettings()


def fullest(
    device: Device = "cuda",
    facts: int = 64,
    adapter: str = "none",
    each: int = Formula.each,
    **sections: dict[str, Any],
) -> Memory:
    """The new side's rank, or the one group's, of LLaMA2-7B, whose passes need `each` bytes a token."""
    model = llama_7b(adapter)
    passes = Formula(model, LORA)
    passes.each = each
    sections["train"] = {"adapter": adapter, **sections.get("train", {})}
    return memory.of_ranks(asked(model, config(**sections), device, facts, passes))[-1]


def seat(first: int, device: Device = "cuda", **sections: dict[str, Any]) -> Asked:
    """Of LLaMA2-7B on two ranks in one group."""
    sections["cluster"] = {"groups": 1, "ranks_per_group": 2}
    made = asked(llama_7b(), config(**sections), device, passes=Formula(llama_7b(), LORA))
    return replace(made, first=first)


def power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length()


def test_zero_1_on_devices() -> None:
    """When the shard's gradients are cast: weights 2n, masters and moments 12s, gradients 2t + 2s + 2s + 4s."""
    one = fullest(cluster={"ranks_per_group": 4})
    s = N // 4
    assert one.device.parts == {
        "process": CUDA_DEVICE,
        "weights": 2 * N,
        "optimizer": 12 * s,
        "gradients": 2 * N + 2 * s + 2 * s + 4 * s,
    }
    assert one.host.parts["θ kept and scores"] == 2 * power_of_two(4 * s) + 3 * 8 * MIB
    assert one.host.parts["process"] == CUDA_HOST
    assert one.loading == 2 * N


def test_buffers_on_the_device_are_not_rounded() -> None:
    one = fullest(cluster={"ranks_per_group": 4, "buffers": "device"})
    assert one.device.parts["θ kept and scores"] == 8 * (N // 4)
    assert one.host.total == CUDA_HOST


def test_zero_3_on_devices() -> None:
    """In the step, a sub-group at a time: the shard's weights with the small ones that are whole everywhere, masters and
    moments 12s, the shard's gradients 2s, a sub-group's laid end to end and in fp32, an fp32 bucket of half a billion."""
    one = fullest(train={"zero_stage": 3}, cluster={"ranks_per_group": 4})
    s, norms = N // 4, 2 * 32 * 4096 + 4096
    assert one.device.parts == {
        "process": CUDA_DEVICE,
        "weights": 2 * s + 2 * norms,
        "optimizer": 12 * s,
        "gradients": 2 * s + 6 * (10**9 + LARGEST // 4),
        "DeepSpeed's buffers": 4 * 5 * 10**8,
    }


def test_zero_3_gathers_no_more_than_deepspeed_lets_live() -> None:
    """Where the batch makes the backward pass the fullest moment."""
    passes = Formula(llama_7b(), LORA)
    passes.each = 10**8
    settings = config(train={"zero_stage": 3}, cluster={"ranks_per_group": 4}, evaluate={"batch": 1})
    one = memory.of_ranks(asked(llama_7b(), settings, passes=passes))[-1]
    assert one.device.parts["weights"] == 2 * (N // 4) + 2 * (2 * 32 * 4096 + 4096) + 2 * (10**9 + 5 * 10**7)
    assert one.device.parts["activations and logits"] == 10**8 * 2 * 32


def test_offload_moves_the_optimizer_to_the_host() -> None:
    here = fullest(cluster={"ranks_per_group": 4})
    there = fullest(train={"offload": "optimizer"}, cluster={"ranks_per_group": 4})
    s = N // 4
    assert "optimizer" not in there.device.parts
    assert there.host.parts["optimizer"] == power_of_two(4 * s) + 8 * s
    assert there.device.total < here.device.total - 12 * s
    everything = fullest(train={"offload": "all", "zero_stage": 3}, cluster={"ranks_per_group": 4})
    assert everything.host.parts["weights"] >= power_of_two(2 * s)


def test_an_adapter_has_a_small_optimizer_and_theta_beside_it() -> None:
    one = fullest(adapter="lora", cluster={"ranks_per_group": 4, "buffers": "device"})
    factors = 32 * 8 * (4 * 8192 + 3 * 15104)
    adapted = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    assert one.device.parts["optimizer"] == 12 * factors // 4
    assert one.device.parts["θ kept and scores"] == 8 * adapted // 4
    assert one.device.parts["weights"] == pytest.approx(2 * (N + factors))


def test_a_cpu_keeps_what_a_step_frees() -> None:
    """bf16, one rank: of building 2n + 2s stay until the first fine-tune ends; a step takes gradients 2n, their flat copy
    2n, fp32 4n, and moments 8n, beside weights 2n, masters 4n and θ 4n."""
    model = small()
    passes = Formula(model, LORA)
    settings = config(method={"rounds": 1}, evaluate={"protocols": ["teacher_forced"]})
    [old, _] = memory.of_ranks(asked(model, settings, "cpu", passes=passes))
    n, largest = model.elements, 8000 * 128
    bucket = min(n, 2 * 10**7)
    activations = Formula.each * 8 * 32
    evaluation = Formula.each * 32 * 32 // 10
    assert old.host.parts == {
        "process": PROCESS,
        "weights": 2 * n + 2 * n + 2 * n,
        "optimizer": 12 * n,
        "gradients": 8 * n,
        "θ kept and scores": 4 * n,
        "DeepSpeed's buffers": 6 * bucket + 8 * largest,
        "activations and logits": max(activations, evaluation),
    }
    assert old.device.total == 0


def test_the_old_side_keeps_theta_and_no_scores() -> None:
    old, new = memory.of_ranks(asked(llama_7b(), config(), passes=Formula(llama_7b(), LORA)))
    assert (old.role, new.role) == ("old", "new")
    assert new.host.parts["θ kept and scores"] > 1.9 * old.host.parts["θ kept and scores"]


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_more_ranks_and_higher_stages_need_less_of_a_device(ranks: int) -> None:
    stages = [fullest(train={"zero_stage": s}, cluster={"ranks_per_group": ranks}).device.total for s in (1, 2, 3)]
    assert stages == sorted(stages, reverse=True)
    assert len(set(stages)) == 3
    twice = [fullest(train={"zero_stage": s}, cluster={"ranks_per_group": 2 * ranks}).device.total for s in (1, 2, 3)]
    assert all(more < less for more, less in zip(twice, stages, strict=True))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_what_needs_more(device: Device, stage: int) -> None:
    def total(facts: int = 4096, **sections: dict[str, Any]) -> int:
        train = {"zero_stage": stage, "batch": 2048, **sections.pop("train", {})}
        cluster = {"ranks_per_group": 2, **sections.pop("cluster", {})}
        one = fullest(device, facts, each=2 * 10**6, train=train, cluster=cluster, evaluate={"batch": 1}, **sections)
        return one.device.total if device == "cuda" else one.host.total

    assert total(train={"batch": 4096}) > total()
    assert total(train={"tokens_per_batch": 32 * 64}) < total()
    assert total(train={"gradient_checkpointing": True}) < total()
    assert total(train={"precision": "fp32"}) > total()
    assert total(cluster={"groups": 1, "ranks_per_group": 4}) < total()


def test_variants_of_the_method_that_keep_more() -> None:
    base = fullest("cpu").host.total
    assert fullest("cpu", dft={"reuse": 2}).host.total == base + 4 * N
    assert fullest("cpu", method={"name": "full"}).host.total < base
    bounded, free = (fullest(method={"name": name}).device.total for name in ("ft_c", "full"))
    assert bounded == free + 4 * N // 2


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("method", ["memit", "dft", "interpolate", "f_learning", "ft_c"])
def test_the_warm_up_is_one_plain_fine_tune_whatever_the_method(method: str, device: Device) -> None:
    forced = {"protocols": ["teacher_forced"]}
    warm = seat(WARM_UP, device, method={"name": method}, warmup={"epochs": 3}, evaluate=forced)
    [one] = memory.of_ranks(warm)
    [plain] = memory.of_ranks(seat(1, device, method={"name": "full", "rounds": 1}, evaluate=forced))
    assert (one.device, one.host) == (plain.device, plain.host)
    assert warm.steps == 3 * 8  # 64 facts, 8 in a batch


def test_the_warm_up_s_evaluation_decodes_nothing() -> None:
    warm = seat(WARM_UP)
    assert warm.evaluation() == seat(1, evaluate={"protocols": ["teacher_forced"]}).evaluation()
    assert warm.evaluation() < seat(1).evaluation()


def test_what_learns_after_forgetting_keeps_no_start() -> None:
    """In a seat of its own, when an adapter has forgotten."""
    [later] = memory.of_ranks(seat(2, method={"name": "f_learning"}))
    [both] = memory.of_ranks(seat(1, method={"name": "f_learning"}))
    assert "θ kept and scores" not in later.host.parts
    assert both.host.parts["θ kept and scores"] == power_of_two(4 * N // 2)


def test_the_second_step_has_activations_beside_the_moments() -> None:
    """Where the batch makes the backward pass the fullest moment, one round is as full as two."""
    one, two = (fullest(each=10**9, method={"name": "full", "rounds": rounds}).device for rounds in (1, 2))
    assert one.total == two.total
    assert one.parts["activations and logits"] > 0
    assert one.parts["optimizer"] == 12 * N // 2


def test_centres_lie_where_the_masters_are() -> None:
    for offload, place in (("none", "device"), ("optimizer", "host")):
        bounded, free = (
            fullest(method={"name": name}, train={"offload": offload}, cluster={"buffers": "host"})
            for name in ("ft_c", "full")
        )
        more = {"device": bounded.device.total - free.device.total, "host": bounded.host.total - free.host.total}
        assert more == {"device": 0, "host": 0} | {place: 4 * N // 2}


def test_deepspeed_s_own_sizes_are_as_they_are_taken_here() -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    zero = DeepSpeedZeroConfig(stage=3)
    assert zero.reduce_bucket_size == memory.BUCKET
    assert zero.max_live_parameters == memory.LIVE
    assert zero.prefetch_bucket_size == memory.PREFETCH
    assert zero.sub_group_size == memory.SUBGROUP
    assert zero.param_persistence_threshold == memory.PERSISTENT
    assert zero.contiguous_gradients
