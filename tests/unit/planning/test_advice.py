"""Whatever it says to change must make the job fit, when it is changed as a user would."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from dft_cluster.config import Config, LoraSettings
from dft_cluster.config_file import parse, validate
from dft_cluster.planning import advice
from dft_cluster.planning.asked import Asked, Device
from dft_cluster.planning.capacity import Capacity, Node, fit
from tests.unit.planning.cases import GB, Formula, asked, config, llama_7b

PASSES = Formula(llama_7b(), LoraSettings())


def of(settings: Config, device: Device = "cuda") -> Asked:
    return asked(llama_7b(), settings, device, passes=PASSES)


def changed(config: Config, way: list[str]) -> Config:
    """The config with what the advice says, as overrides of its own keys."""
    tree: dict[str, Any] = config.to_json()
    for said in way:
        if said == "cluster.groups=1 on the same ranks":
            tree["cluster"] |= {"groups": 1, "ranks_per_group": tree["cluster"]["ranks_per_group"] * 2}
            continue
        key, _, value = said.partition("=")
        section, _, name = key.partition(".")
        tree[section][name] = parse(value)
    return validate(tree)


@settings(max_examples=150, deadline=None)
@given(
    ranks=st.sampled_from([1, 2, 4, 8]),
    groups=st.sampled_from([1, 2]),
    stage=st.sampled_from([1, 2, 3]),
    precision=st.sampled_from(["bf16", "fp32"]),
    buffers=st.sampled_from(["host", "device"]),
    batch=st.sampled_from([4, 64]),
    device_gb=st.sampled_from([16, 24, 40, 80, 141]),
    host_gb=st.sampled_from([64, 256, 1000, 2000]),
    nodes=st.integers(1, 3),
    on_cpu=st.booleans(),
)
def test_the_way_it_names_is_enough(
    ranks: int, groups: int, stage: int, precision: str, buffers: str, batch: int, device_gb: int, host_gb: int,
    nodes: int, on_cpu: bool,
) -> None:  # fmt: skip
    there = Capacity((Node(host_gb * GB, 0 if on_cpu else 8, device_gb * GB),) * nodes)
    start = config(
        cluster={"ranks_per_group": ranks, "groups": groups, "buffers": buffers},
        train={"zero_stage": stage, "precision": precision, "batch": batch},
    )
    device: Device = "cpu" if on_cpu else "cuda"
    here = of(start, device)
    if fit(here, there).fits:
        return
    told = advice.advise(here, there)
    if told.way:
        assert fit(of(changed(start, told.way), device), there).fits
    for change in told.changes:
        if change.fits:
            assert told.way, "a change that is enough was not named"


def test_the_first_that_is_enough_is_named() -> None:
    """45 GB devices are too small for ZeRO-1 over 4 ranks, and for ZeRO-2; with ZeRO-3 it fits."""
    there = Capacity((Node(1000 * GB, 8, 45 * GB),))
    told = advice.advise(of(config(cluster={"ranks_per_group": 4})), there)
    assert told.way == ["train.zero_stage=3"]
    third = next(change for change in told.changes if change.setting == "train.zero_stage=3")
    assert third.fits
    assert third.device_saves > 10 * GB
    assert "saves" in third.text()


def test_changes_are_listed_in_the_order_in_which_to_try_them() -> None:
    there = Capacity((Node(10 * GB, 16, 16 * GB),))
    start = of(config(cluster={"ranks_per_group": 4, "buffers": "device"}))
    order = list(dict.fromkeys(change.setting.partition("=")[0] for change in advice.advise(start, there).changes))
    assert order == [
        "train.zero_stage",
        "train.tokens_per_batch",
        "train.gradient_checkpointing",
        "cluster.buffers",
        "train.offload",
        "cluster.groups",
        "cluster.ranks_per_group",
    ]


def test_where_nothing_is_enough_nothing_is_promised() -> None:
    told = advice.advise(of(config()), Capacity((Node(8 * GB, 2, 8 * GB),)))
    assert told.way == []
    assert told.enough is None
    assert not any(change.fits for change in told.changes)


def test_the_choice_of_groups_has_its_reasons() -> None:
    roomy, tight = (Capacity((Node(2000 * GB, 8, size * GB),)) for size in (141, 26))
    start = of(config(cluster={"ranks_per_group": 4}, train={"zero_stage": 3}))
    assert advice.groups(start, roomy).startswith("cluster.groups=2")
    assert advice.groups(start, tight).startswith("cluster.groups=1")
    assert "GiB between the groups" in advice.groups(start, roomy)
    assert "cannot be halved" in advice.groups(of(config(cluster={"groups": 1, "ranks_per_group": 3})), roomy)
