"""Keys that do not go with each other: told when the config is read, all at once, before a model or a fact is."""

from typing import Any

import pytest

from dft_cluster.config_file import validate
from dft_cluster.errors import InputError


def refused(tree: dict[str, Any]) -> str:
    with pytest.raises(InputError) as caught:
        validate(tree)
    return str(caught.value)


def of(name: str, **sections: dict[str, Any]) -> dict[str, Any]:
    """A config of this method."""
    return {**sections, "method": {"name": name, **sections.get("method", {})}}


@pytest.mark.parametrize(
    ("tree", "told"),
    [
        ({"train": {"offload": "all", "zero_stage": 2}}, "train.zero_stage=3"),
        ({"facts": {"format": "pairs", "path": "a.json"}}, "takes two files"),
        ({"facts": {"file": "a.json"}}, "facts.format=hub"),
        ({"facts": {"seed": 3}}, "facts.limit"),
        ({"model": {"gguf": "a.gguf"}}, "smollm2-135m"),
        ({"evaluate": {"protocols": ["generated"]}}, "teacher_forced must be among them"),
        ({"run": {"dir": "s3://key:SECRET@bucket/runs"}}, "must not hold a key"),
        ({"run": {"dir": "s3://key:SEC/SECRET@bucket/runs?region=eu-west-1"}}, "must not hold a key"),
        ({"run": {"dir": "s3://key:7/SECRET@bucket/runs"}}, "must not hold a key"),
    ],
)
def test_of_what_is_read_and_written(tree: dict[str, Any], told: str) -> None:
    message = refused(tree)
    assert told in message and "SECRET" not in message


def test_a_storage_uri_without_a_key_is_fine() -> None:
    for uri in (
        "s3://bucket/runs?region=eu-west-1", "gs://anonymous@bucket/runs", "/mnt/a:b@c", "s3://bucket/runs/10:00@a",
        "hdfs://namenode:8020/user/me@there/runs",
    ):  # fmt: skip
        assert validate({"run": {"dir": uri}}).run.dir == uri


@pytest.mark.parametrize(
    ("tree", "told"),
    [
        (of("full", method={"layers": [0]}), "method.layers: goes with rome, memit and ft_c"),
        (of("memit", method={"rounds": 2}), "method.rounds: memit is done in one round (it is 2)"),
        (of("f_learning", method={"rounds": 1}), "right would be at least 2"),
        (of("full", method={"rounds": 2}, train={"schedule": "linear"}), "constant, or method.rounds=1"),
        (of("f_learning", method={"rounds": 3}, train={"schedule": "cosine"}), "rounds 2 to 3 (method.rounds)"),
        (of("dft", method={"rounds": 3}, converge={"keep": 4}), "converge.keep: round 4 of method.rounds=3"),
        (of("lora", train={"adapter": "none"}), "train.adapter: method.name=lora is plain fine-tuning of an adapter"),
        (of("ft_c", train={"adapter": "lora"}), "bounds the weights themselves"),
        (of("f_learning", train={"adapter": "lora"}), "f_learning.forget=lora"),
        (of("memit", train={"rephrases": 2}), "train.rephrases: memit is taught no texts; right would be 0"),
        (of("dft", dft={"mask": "new", "add": "difference"}), "dft.mask is new"),
        (of("dft", dft={"by": "new", "add": "difference"}), "dft.by new"),
        (of("dft", dft={"mask": "random", "by": "new"}), "dft.by: dft.mask=random is ranked by itself"),
        (of("dft", dft={"mask": "random", "reuse": 2, "old_epochs": 1}), "does without the old answers"),
        (of("full", train={"within": 1e-3}), "right would be method.name=ft_c with ft_c.epsilon"),
        (of("ft_c", train={"within": 1e-3}), "train.within: ft_c has a bound of its own; right would be ft_c.epsilon"),
        (of("rome", train={"within": 1e-3}), "train.within: rome trains no weights"),
        (of("dft", train={"within": 1e-3, "adapter": "lora"}), "train.within: bounds the weights themselves"),
        (of("f_learning", f_learning={"learn": "lora"}, train={"within": 1e-3}), "train.within: bounds the weights themselves"),
        (of("dft", dft={"scales": [1, 2]}, train={"adapter": "lora"}), "dft.scales: a line search needs θ"),
        (of("dft", dft={"scales": [1, 2], "rest": 0.3}), "leave one of them out"),
        (of("dft", dft={"mask": "new"}, method={"of": "conflicts"}), "there are no conflicts to take a share of"),
    ],
)  # fmt: skip
def test_of_a_method(tree: dict[str, Any], told: str) -> None:
    assert told in refused(tree)


def test_everything_is_told_at_once() -> None:
    told = refused(of("rome", train={"zero_stage": 3, "adapter": "lora", "contexts": 1}, facts={"seed": 3}))
    assert told.startswith("config: 4 problems\n")
    assert "  train.zero_stage: rome runs each rank's share" in told and "right would be 2" in told
    assert all(f"  {key}: " in told for key in ("train.adapter", "train.contexts", "facts.seed"))


@pytest.mark.parametrize(("method", "rounds"), [("full", 1), ("f_learning", 2), ("dft", 5), ("interpolate", 5)])
def test_a_schedule_goes_with_rounds_that_are_a_fine_tune_each(method: str, rounds: int) -> None:
    assert validate(of(method, method={"rounds": rounds}, train={"schedule": "linear"})).method.rounds == rounds
