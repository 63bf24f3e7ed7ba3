import re
import subprocess
import sys
from pathlib import Path

import pytest

from dft_cluster.comparison.loading import checked, load
from dft_cluster.comparison.settings import config_of, dotted, laid, sections
from dft_cluster.config_file import validate
from dft_cluster.errors import InputError

ROOT = Path(__file__).parents[3]
CONFIGS = sorted((ROOT / "jobs" / "configs").glob("compare_*.yaml"))
TREE = {"models": {"m": {}}, "data": {"d": {}}, "methods": {"dft": {}, "full": {"method": {"name": "full"}}}}


def refused(**more):
    with pytest.raises(InputError) as caught:
        checked({**TREE, **more}, "my.yaml")
    return str(caught.value)


def test_sections_are_laid_over_each_other():
    tree = {
        "base": {"train": {"lr": 1e-5, "epochs": 2}},
        "models": {"m": {"model": {"name": "one"}, "train": {"lr": 2e-5}}},
        "data": {"d": {"facts": {"path": "a.jsonl"}, "report": {"facts": 3}}},
        "methods": {"dft": {"method": {"top": 0.1}, "train": {"lr": 3e-5}}},
    }
    settings = checked(tree)
    found = sections(settings, "m", "d", "dft")
    assert found["train"] == {"lr": 3e-5, "epochs": 2}
    assert "report" not in found
    assert settings.report_of("d").facts == 3
    assert settings.report.facts == 100
    config = config_of(laid(found, dotted({"train.lr": 4e-5, "method.scale": 2})), 7, "/runs/cells", "m.d.dft.7")
    assert (config.train.lr, config.train.epochs, config.train.seed, config.method.scale) == (4e-5, 2, 7, 2.0)
    assert (config.run.dir, config.run.name, config.track.wandb) == ("/runs/cells", "m.d.dft.7", "off")


def test_a_run_from_a_warmed_model_is_not_warmed_again():
    config = config_of({"model": {"name": "a", "revision": "b"}, "warmup": {"epochs": 3}}, 0, "r", "n", "/warm/base")
    assert (config.model.name, config.model.revision, config.warmup.epochs) == ("/warm/base", None, 0)


def test_every_problem_is_told_at_once_and_where():
    told = refused(
        base={"train": {"lrr": 1}},
        models={"m": {"run": {"name": "x"}}, "other": {"model": {"nam": "x"}}},
        data={"d": {"facts": {"format": "hubb"}, "report": {"facts": 0}}},
        methods={"full": {"method": {"name": "fill"}, "train": {"template": "chat"}}, "late": {"train": {"seed": 1}}},
        seeds=[0, 0],
        levels=[95, 95.0],
        draws=0,
        reference="none",
        search={"over": {"nobody": {"train.lr": [1]}, "full": {"train.lr": [-1], "lr": [1], "evaluate.every": [2]}},
                "like": {"full": "late"}},
    )  # fmt: skip
    for line in (
        "draws: ", "base: train.lrr: unknown key", "models.m.run: must not stand here", "models.other: model.nam: unknown key",
        "data.d: facts.format: ", "data.d.report.facts: ", "methods.full: method.name: ",
        "methods.full.train.template: all methods are asked alike", "methods.late.train.seed: `seeds` sets it",
        "seeds: ", "levels: ", "reference: 'none'", "search.over.nobody: is none of the methods",
        "search.over.full: train.lr: ", "search.over.full.lr: write it as section.key",
        "search.over.full.evaluate.every: ", "search.like.full: must be", "search.like.full: 'late' is none",
    ):  # fmt: skip
        assert told.count(f"\n  {line}") == 1, (line, told)
    assert told.startswith("my.yaml: ")


def test_own_keys_are_checked_too():
    told = refused(
        seed=[1], seeds=[True], draws=0, levels=[101], models={"a b": {}}, search={"facts": 0}, run={"dirr": "x"}
    )
    for place in ("seed: unknown", "seeds.0: ", "draws: ", "levels.0: ", "models.a b", "search.facts: ",
                  "search.over: is missing", "run.dirr: unknown"):  # fmt: skip
        assert f"\n  {place}" in told, told


def test_a_warmed_model_that_runs_share_is_not_kept_in_a_bucket():
    warm = {"warmup": {"epochs": 1}}
    told = refused(base=warm, run={"dir": "s3://bucket/runs?region=eu-west-1"})
    assert "run.dir: s3://bucket/runs is a storage URI" in told
    checked({**TREE, "run": {"dir": "s3://bucket/runs"}}, "my.yaml")
    checked({**TREE, "base": warm, "run": {"dir": "file:///shared/runs"}}, "my.yaml")


def test_what_a_comparison_cannot_do_without_is_named():
    with pytest.raises(InputError) as caught:
        checked({"methods": {}})
    told = str(caught.value)
    assert "models: is missing" in told
    assert "data: is missing" in told
    assert "methods: " in told


def test_a_combination_is_said_of_the_cell_that_makes_it():
    told = refused(
        models={"m": {"dft": {"rest": 0.5}}, "n": {}}, methods={"line": {"dft": {"scales": [1, 2]}}, "dft": {}}
    )
    assert told.splitlines()[1:] == [
        "  m.d.line: dft.rest, dft.outside: a line search (dft.scales) moves all that was added; leave one of them out"
    ]


def test_no_run_ends_with_a_round_chosen_by_the_reported_facts():
    assert sections(checked(TREE), "m", "d", "dft")["converge"] == {"keep": "last"}
    for place in ("base", "models.m", "data.d", "methods.dft"):
        axis, _, label = place.partition(".")
        tree = {"converge": {"keep": "best"}}
        told = refused(**{axis: {label: tree} if label else tree})
        assert f"  {place}.converge.keep: a run ends with the round that its search chose, else with its last" in told


def test_beside_a_search_nothing_ends_a_run_early():
    search = {"over": {"full": {"train.lr": [1e-4]}}}
    assert sections(checked(TREE), "m", "d", "full")["converge"] == {"keep": "last"}
    found = sections(checked({**TREE, "search": search}), "m", "d", "full")["converge"]
    assert found == {"keep": "last", "reliability": "off", "patience": "off"}
    told = refused(
        base={"converge": {"reliability": 95}}, methods={"full": {"converge": {"patience": 2}}}, search=search
    )
    assert "  base.converge.reliability: with a search no run ends by what the reported facts say" in told
    assert "  methods.full.converge.patience: with a search" in told
    search["over"]["full"]["converge.patience"] = [1, 2]
    assert "search.over.full.converge.patience: with a search" in refused(search=search)


def test_a_control_has_as_many_rounds_as_the_method_whose_setting_it_takes():
    methods = {"dft": {"method": {"rounds": 2}}, "random": {"method": {"rounds": 3}, "dft": {"mask": "random"}}}
    told = refused(methods=methods, search={"over": {"dft": {"method.top": [0.1]}}, "like": {"random": "dft"}})
    assert "search.like.random: method.rounds is 3, but 2 for dft" in told


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"method": {"scale": 2}}, "method.scale is 2.0, but 1.0 for dft"),
        ({"method": {"top": 0.2}}, "method.top is"),
        ({"train": {"epochs": 9}}, "train.epochs is 9, but "),
    ],
)
def test_a_control_differs_in_its_mask_alone(more, said):
    random = {"method": {"top": 0.1}, "dft": {"mask": "random"}}
    for section, keys in more.items():
        random[section] = {**random.get(section, {}), **keys}
    search = {"over": {"dft": {"train.lr": [1e-4]}}, "like": {"random": "dft"}}
    told = refused(methods={"dft": {"method": {"top": 0.1}}, "random": random}, search=search)
    assert f"search.like.random: {said}" in told


@pytest.mark.parametrize("axis", ["models", "data"])
def test_a_control_is_its_methods_own_for_every_model_and_data_set(axis):
    """Some of them may set what only one of the two leaves open."""
    methods = {"dft": {"train": {"lr": 5e-5}}, "random": {"dft": {"mask": "random"}}}
    labels = {"one": {}, "two": {"train": {"lr": 1e-4}}, "three": {"train": {"lr": 1e-4}}}
    search = {"over": {"dft": {"method.top": [0.1]}}, "like": {"random": "dft"}}
    told = refused(**{axis: labels}, methods=methods, search=search)
    place = "two.d" if axis == "models" else "m.two"
    assert told.splitlines()[1:] == [
        f"  search.like.random: train.lr is 0.0001, but 5e-05 for dft ({place}); right would be the same"
    ]


@pytest.mark.parametrize(
    "address",
    [
        "s3://me:s3cret@bucket/runs",
        "abfss://c@a.dfs.core.windows.net/runs?client_secret=s3cret",
        "abfss://c@a/r?sig=s3cret&sv=1",
    ],
)
def test_a_key_in_the_storage_address_is_refused(address):
    told = refused(run={"dir": address})
    assert "run.dir: a storage URI must not hold a key" in told and "s3cret" not in told


def test_overrides_are_laid_over_the_file(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("models: {m: }\ndata: {d: {}}\nmethods: {dft: {}}\n")
    settings = load(file, ["base.train.lr=5e-5", "seeds=[1, 2]", "run.dir=/x", "data.d.facts.path=a.csv"])
    assert settings.base == {"train": {"lr": 5e-5}}
    assert (settings.seeds, settings.run.dir, settings.data) == ((1, 2), "/x", {"d": {"facts": {"path": "a.csv"}}})
    with pytest.raises(InputError, match=r"override 'seeds': write it as"):
        load(file, ["seeds"])
    with pytest.raises(InputError, match="no such file"):
        load(tmp_path / "none.yaml")
    file.write_text("- a\n")
    with pytest.raises(InputError, match="must be a mapping"):
        load(file)


def test_an_override_changes_one_place_of_those_that_share_an_anchor(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("models: {m: }\ndata: {d: }\nmethods: {a: &a {train: &t {epochs: 8}}, b: {train: *t}, c: *a}\n")
    settings = load(file, ["methods.a.train.lr=9e-4"])
    plain = {"train": {"epochs": 8}}
    assert settings.methods == {"a": {"train": {"epochs": 8, "lr": 9e-4}}, "b": plain, "c": plain}


def test_a_config_that_cannot_be_read_is_not_called_invalid(tmp_path):
    with pytest.raises(InputError, match=r"^config .*: cannot be read: .*[Dd]irectory"):
        load(tmp_path)
    file = tmp_path / "c.yaml"
    file.write_text("models: {")
    with pytest.raises(InputError, match="not valid YAML"):
        load(file)


def test_the_reference_is_dft_or_the_first():
    assert checked(TREE).compared_with == "dft"
    assert checked({**TREE, "methods": {"b": {}, "a": {}}}).compared_with == "b"
    assert checked({**TREE, "reference": "full"}).compared_with == "full"


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.name)
def test_the_projects_own_comparisons(file):
    settings = load(file)
    first = file.read_text().partition("\n")[0]
    assert first.startswith(f"# ray job submit --working-dir . -- python jobs/compare.py jobs/configs/{file.name}")
    named = {
        validate(sections(settings, next(iter(settings.models)), next(iter(settings.data)), m)).method.name
        for m in settings.methods
    }
    assert named == {"dft", "full", "lora", "ft_c", "f_learning", "interpolate", "rome", "memit"}
    if settings.search is not None:
        assert settings.search.over.keys() | settings.search.like.keys() == settings.methods.keys()


@pytest.mark.parametrize("file", sorted((ROOT / "benchmarks").glob("*.yaml")), ids=lambda file: file.name)
def test_the_comparisons_behind_the_measurements_can_be_made_again(file):
    settings = load(file)
    told = file.read_text().splitlines()[0]
    assert re.match(
        rf"# python (-m benchmarks\.beside|jobs/compare\.py) benchmarks/{re.escape(file.name)} run\.dir=", told
    )
    if settings.search is not None:
        assert settings.search.over.keys() | settings.search.like.keys() == settings.methods.keys()


REPORTED = {
    "table1": ({"zsre": (0, 0), "counterfact": (2, 10)}, [0, 1, 2], [80, 90, 95, 99]),
    "table2": ({"zsre": (0, 0)}, [0, 1, 2], [80, 90, 95, 99]),
    "table3": ({"edits-1": 1, "edits-10": 10, "edits-100": 100}, [0], [95]),
}
MODELS = {
    "table1": ["meta-llama/Llama-2-7b-hf", "huggyllama/llama-7b"],
    "table2": ["bigscience/bloom-7b1"],
    "table3": ["meta-llama/Llama-2-7b-hf"],
}


@pytest.mark.parametrize("table", REPORTED)
@pytest.mark.parametrize("small", [True, False])
def test_they_are_the_papers_tables(small, table):
    settings = load(ROOT / "jobs" / "configs" / f"compare_{'smollm2_' if small else ''}{table}.yaml")
    data, seeds, levels = REPORTED[table]
    models = ["smollm2-135m"] if small else MODELS[table]
    assert [validate(sections(settings, model, next(iter(data)))).model.name for model in settings.models] == models
    for label in settings.data:
        report, facts = (
            settings.report_of(label),
            validate(sections(settings, next(iter(settings.models)), label)).facts,
        )
        if table == "table3":
            assert report.facts == data[label]
        else:
            assert (report.facts, (report.rephrases, report.locality)) == (100 if small else 1000, data[label])
        counterfact = ("azhx/counterfact", None)
        zsre = ("wangzn2001/Model_Editing_Hurt", "training-data/zsre_mend_train.json")
        assert (facts.path, facts.file) == (counterfact if label == "counterfact" else zsre)
    assert list(settings.data) == list(data)
    assert (list(settings.seeds), list(settings.levels)) == (seeds, levels)
    covariances = {
        validate(sections(settings, model, label, method)).editing.covariance
        for model in settings.models
        for label in settings.data
        for method in ("rome", "memit")
    }
    assert covariances == {"Salesforce/wikitext:wikitext-103-raw-v1"}


def test_there_are_six_of_them():
    assert len(CONFIGS) == 6


def test_values_that_no_config_allows_together_are_told_before_anything_starts():
    over = {"dft.scales": [[], [1, 2]], "dft.rest": [0, 0.5], "method.top": [0.1, 0.2]}
    checked({**TREE, "search": {"over": {"dft": {**over, "dft.rest": [0]}}}})
    told = refused(search={"over": {"dft": over}})
    assert told.startswith("my.yaml: 1 problem\n"), told
    setting = "{'dft.scales': [1, 2], 'dft.rest': 0.5, 'method.top': 0.1}"
    assert f"search.over.dft: {setting}: dft.rest, dft.outside: a line search" in told
    checked({**TREE, "search": {"over": {"dft": over}, "trials": 1, "seed": 1}})  # none that is tried is such a one
    # What is wrong with a model, or with one of the values, is said of it alone.
    told = refused(models={"m": {}, "b": {"train": {"batch": -1}}}, search={"over": {"dft": {"method.top": [0.1]}}})
    assert told.startswith("my.yaml: 1 problem\n") and "models.b: train.batch" in told, told
    told = refused(search={"over": {"full": {"lr": [1e-3], "train.lr": [1e-4]}}})
    assert told.startswith("my.yaml: 1 problem\n") and "search.over.full.lr: write it as section.key" in told, told


@pytest.mark.parametrize("module", ["loading", "run"])
def test_a_bad_config_needs_no_torch_and_a_comparison_no_ray(module):
    heavy = {"loading": ("torch", "ray", "transformers"), "run": ("ray",)}[module]
    code = f"import sys, dft_cluster.comparison.{module}; print([n for n in {heavy!r} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
