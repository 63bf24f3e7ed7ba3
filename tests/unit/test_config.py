import json
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dft_cluster.config import Config
from dft_cluster.config_file import load, parse, validate
from dft_cluster.errors import InputError

FOLDER = Path(__file__).resolve().parents[2] / "jobs" / "configs"
CONFIGS = [file for file in sorted(FOLDER.glob("*.yaml")) if not file.name.startswith("compare_")]


def refused(tree, source="config"):
    with pytest.raises(InputError) as caught:
        validate(tree, source)
    return str(caught.value)


def loaded(folder, text, *overrides):
    file = folder / "c.yaml"
    file.write_text(text)
    return load(file, overrides)


def test_nothing_given_is_the_default():
    assert validate({}) == Config()
    assert validate({"train": None}) == Config()


def test_every_problem_is_told_at_once():
    told = refused(
        {
            "train": {"epochs": 2.5, "seed": -1, "learning": 1, "offload": "all"},
            "method": {"top": 1.5, "name": "dtf"},
            "converge": {"reliability": "of"},
            "facts": {"format": "pairs"},
            "trian": {"lr": 1},
        },
        "my.yaml",
    )
    assert told.startswith("my.yaml: 9 problems\n")
    for key in ("train.epochs", "train.seed", "train.learning", "train.offload", "method.top", "method.name",
                "converge.reliability", "facts.path", "trian"):  # fmt: skip
        assert told.count(f"\n  {key}: ") == 1, told


def test_a_problem_names_the_value_and_what_would_be_right():
    told = refused({"train": {"template": "alpacca"}})
    assert "train.template" in told and "'plain', 'alpaca' or 'chat'" in told and "'alpacca'" in told


def test_a_combination_is_not_blamed_on_a_key_that_is_wrong_itself():
    told = refused({"facts": {"format": "hubb", "file": "a.json"}})
    assert told.startswith("config: 1 problem\n") and "facts.format" in told


@pytest.mark.parametrize(
    ("tree", "right"),
    [
        ({"train": {"lrr": 1}}, "train.lr"),
        ({"train": {"LR": 1}}, "train.lr"),
        ({"train": {"zero-stage": 1}}, "train.zero_stage"),
        ({"train": {"rounds": 1}}, "method.rounds"),
        ({"facts": {"batch": 1}}, "train.batch or evaluate.batch or editing.batch"),
        ({"cluster": {"rounds": 1}}, "method.rounds"),
        ({"method": {"schedule": "linear"}}, "train.schedule"),
        ({"method": {"templates": "plain"}}, "train.template"),
        ({"trian": {}}, "train"),
        ({"Train": {}}, "train"),
        ({"lr": 1}, "train.lr or editing.lr"),
        ({"epochs": 1}, "warmup.epochs or train.epochs or f_learning.epochs"),
    ],
)
def test_an_unknown_key_comes_with_the_nearest_right_name(tree, right):
    assert f"unknown key (did you mean {right}?)" in refused(tree)


def test_a_key_like_no_other_comes_with_the_known_ones():
    assert "track.api: unknown key (known: wandb, project, tags)" in refused({"track": {"api": "x"}})


@pytest.mark.parametrize(
    ("section", "key"),
    [("train", "epochs"), ("train", "lr"), ("train", "zero_stage"), ("train", "seed"), ("cluster", "groups"), ("facts", "seed"),
     ("method", "top"), ("method", "scale"), ("warmup", "epochs"), ("converge", "reliability"), ("converge", "patience"),
     ("cluster", "gpus_per_rank"), ("evaluate", "every"), ("facts", "limit")],
)  # fmt: skip
@pytest.mark.parametrize("value", [True, False])
def test_a_truth_value_is_no_number(section, key, value):
    told = refused({section: {key: value}})
    assert f"{section}.{key}: must be a number, not true or false" in told


@pytest.mark.parametrize(("section", "value"), [("model", "smollm2-135m"), ("train", [1]), ("run", 3)])
def test_a_section_must_be_one(section, value):
    assert f"{section}: must be a section" in refused({section: value})


@pytest.mark.parametrize("key", [1, None, 2.5])
def test_a_key_must_be_a_word(key):
    assert f"{key}: keys should be strings" in refused({key: {}})


@pytest.mark.parametrize("top", [0, -0.1, 1.0000001, 5, float("nan"), "nan", float("inf"), "five", "", None, "5 %"])
def test_top_must_lie_above_0_and_not_above_1(top):
    assert "method.top: " in refused({"method": {"top": top}})


@pytest.mark.parametrize("top", [1, 1.0, "1", 1e-12, Decimal("0.5")])
def test_top_within_its_bounds(top):
    assert validate({"method": {"top": top}}).method.top == Decimal(str(top))


@given(st.decimals("0.000001", "1", places=6))
def test_top_is_the_decimal_that_was_written(top):
    tree = parse(f"method: {{top: {top}}}")
    config = validate(tree)
    assert config.method.top == top
    assert validate(json.loads(json.dumps(config.to_json()))).method.top == top


def test_29_of_100_is_29():
    assert int(validate({"method": {"top": 0.29}}).method.top * 100) == 29
    assert int(0.29 * 100) == 28


@pytest.mark.parametrize(
    ("section", "key"), [("converge", "min_gain"), ("cluster", "timeout"), ("cluster", "gpus_per_rank"), ("train", "lr"),
                         ("train", "clip"), ("train", "weight_decay"), ("method", "scale"), ("converge", "reliability")],
)  # fmt: skip
@pytest.mark.parametrize("value", [float("inf"), float("nan"), -1])
def test_no_number_is_infinite_or_below_its_bound(section, key, value):
    assert f"{section}.{key}: " in refused({section: {key: value}})


def test_yaml_words_and_numbers():
    text = "[on, off, yes, 5e-5, 1E3, .5, +2.5, 1_000, 2026-01-31, 12:30, true, False, 1.5.2, 1e, ~, -7, 010]"
    assert parse(text) == [
        "on", "off", "yes", 5e-5, 1000.0, 0.5, 2.5, 1000, "2026-01-31", "12:30", True, False, "1.5.2", "1e", None, -7, "010",
    ]  # fmt: skip


def test_off_is_a_word_and_on_is_a_key(tmp_path):
    config = loaded(
        tmp_path, "converge: {on: token, reliability: off, patience: off}\ntrack: {wandb: off}\ntrain: {lr: 5e-5}"
    )
    assert (config.converge.on, config.converge.reliability, config.converge.patience) == ("token", "off", "off")
    assert (config.track.wandb, config.train.lr) == ("off", 5e-5)


def test_a_key_that_stands_twice_is_refused(tmp_path):
    with pytest.raises(InputError, match="'train' stands twice"):
        loaded(tmp_path, "train: {lr: 1}\nfacts: {}\ntrain: {epochs: 2}\n")
    with pytest.raises(InputError, match="'lr' stands twice"):
        loaded(tmp_path, "train:\n  lr: 1\n  lr: 2\n")


def test_overrides_lie_over_the_file(tmp_path):
    config = loaded(
        tmp_path, "train: {lr: 1e-3, epochs: 2}\nmodel:\n", "train.lr=5e-5", "facts.limit=7", "facts.path=a=b.json",
        "track.tags=[a, b]", "model.gguf=", "model.name=m", "method.top=0.29", "facts.limit=8",
    )  # fmt: skip
    assert (config.train.lr, config.train.epochs, config.facts.limit) == (5e-5, 2, 8)
    assert (config.facts.path, config.track.tags, config.model.gguf) == ("a=b.json", ("a", "b"), None)
    assert config.method.top == Decimal("0.29")


def test_bad_overrides_are_told_with_everything_else(tmp_path):
    bad = ("train.lr", "lr=1", "train.lr=[", ".lr=1", "train.=1")
    with pytest.raises(InputError) as caught:
        loaded(tmp_path, "train: {epochs: 0}", *bad, "train.seed.x=1", "method.top=2")
    told = str(caught.value)
    assert "c.yaml: 8 problems" in told
    for override in bad:
        assert f"override {override!r}: write it as section.key=value" in told
    assert all(part in told for part in ("train.epochs", "train.seed.x: unknown key", "method.top"))


def test_an_override_does_not_hide_a_section_that_is_none(tmp_path):
    with pytest.raises(InputError, match="train: must be a section"):
        loaded(tmp_path, "train: 5", "train.lr=1")


@pytest.mark.parametrize(
    ("content", "told"),
    [(b"- a", "must be a mapping of sections, not list"), (b"a: [", "not valid YAML"), (b"\xff\xfe\x00x", "not valid YAML"),
     (b"just words", "not str"), (b"a: !!python/object:os.system x", "not valid YAML"), (b"? [a]\n: 1", "not valid YAML")],
)  # fmt: skip
def test_a_file_that_is_no_config(tmp_path, content, told):
    file = tmp_path / "c.yaml"
    file.write_bytes(content)
    with pytest.raises(InputError, match=told):
        load(file)


def test_a_missing_and_an_empty_file(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        load(tmp_path / "none.yaml")
    assert loaded(tmp_path, "# nothing\n") == Config()


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "a b", "a\n", "-x"])
def test_a_run_is_named_like_a_folder(name):
    assert "run.name" in refused({"run": {"name": name}})


def test_what_is_resolved_is_read_back_the_same():
    tree = {
        "method": {"top": 0.29}, "converge": {"reliability": "off"}, "track": {"tags": ["a"]}, "facts": {"limit": 3, "seed": 1},
        "cluster": {"gpus_per_rank": 0.5}, "evaluate": {"protocols": ["teacher_forced", "likelihood"]},
    }  # fmt: skip
    config = validate(tree)
    text = json.dumps(config.to_json(), allow_nan=False)
    assert validate(json.loads(text)) == config
    assert json.loads(text)["method"]["top"] == "0.29"


def test_the_config_is_read_without_torch_or_ray():
    code = "import dft_cluster.config, sys; print(*({'torch', 'ray', 'transformers', 'deepspeed'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.name)
def test_the_projects_own_configs(file):
    config = load(file)
    assert validate(config.to_json()) == config
    assert file.read_text().startswith("#") and "ray job submit" in file.read_text().partition("\n")[0]


def test_every_key_is_explained():
    for section in Config.model_fields.values():
        for name, field in type(section.default).model_fields.items():
            assert field.description or name in ("project", "tags", "name", "dir"), name
