from pathlib import Path
from typing import Any

import pytest
import yaml

from dft_cluster.cluster.job import main
from dft_cluster.config import LoraSettings
from dft_cluster.config_file import load
from dft_cluster.errors import InputError
from dft_cluster.facts.pairs import given
from dft_cluster.local import in_this_process
from dft_cluster.methods.prepare import WARM_UP, prepare
from dft_cluster.methods.training_set import Drawn, examples
from dft_cluster.planning.activations import Shape
from dft_cluster.planning.advice import advise
from dft_cluster.planning.asked import Asked, Passes
from dft_cluster.planning.capacity import Capacity, Node, fit
from dft_cluster.planning.command import plan_command
from dft_cluster.planning.model import Model
from dft_cluster.planning.plan import of_seats, plan, training_sets
from dft_cluster.runs.console import Console
from dft_cluster.training.batches import steps
from tests import tiny
from tests.integration import runs
from tests.unit.planning.cases import GB, asked, config, llama_7b

ROOMY = Capacity((Node(64 * GB),))
ROOT = Path(__file__).resolve().parents[3]


def test_llama2_7b_on_eight_devices_of_80_gb() -> None:
    """As the paper had it, two groups of four: ZeRO-1 fits, with θ kept on the host. Smaller devices take other settings."""
    eight = Capacity((Node(1000 * GB, 8, 80 * GB),))
    settings = config(cluster={"ranks_per_group": 4}, train={"batch": 16})
    made = of_seats({"every round": asked(llama_7b(), settings)}, eight)
    assert made.fit.fits
    assert made.advice is None
    assert 55 * GB < made.fit.device_needs < 72 * GB
    text = made.text()
    for word in (
        "6,738,415,616 elements",
        "it fits",
        "optimizer",
        "cluster.groups=2",
        "25.10 GiB of deltas",
        "not timed",
    ):
        assert word in text
    for size, way in ((48, "train.zero_stage=3"), (40, "train.offload=optimizer")):
        less = of_seats({"every round": asked(llama_7b(), settings)}, Capacity((Node(1000 * GB, 8, size * GB),)))
        assert not less.fit.fits
        assert less.advice is not None
        assert less.advice.way == [way]
        assert f"change {way}; one by one:" in less.text()


def test_the_shipped_7b_config_fits_the_node_that_it_names() -> None:
    settings = load(ROOT / "jobs" / "configs" / "llama2_7b_zsre.yaml")
    made = of_seats({"every round": asked(llama_7b(), settings, facts=1000)}, Capacity.of_text("1x8x80:1000"))
    assert made.fit.fits, made.text()
    assert "there: 1 node with 8 devices of 74.5 GiB and 931.3 GiB on the host" in made.text()


@pytest.mark.parametrize(
    ("text", "nodes"),
    [
        ("2x8x80:1000", [Node(1000 * GB, 8, 80 * GB)] * 2),
        ("1x8x80:1000, 2x1x24:64.5", [Node(1000 * GB, 8, 80 * GB), *[Node(int(64.5 * GB), 1, 24 * GB)] * 2]),
        ("4:64", [Node(64 * GB)] * 4),
    ],
)
def test_nodes_in_words(text: str, nodes: list[Node]) -> None:
    assert list(Capacity.of_text(text).nodes) == nodes


@pytest.mark.parametrize("text", ["", "8x80", "2x8x80", "0x8x80:1000", "2x8x80:1000,", "two:64", "2x8:64"])
def test_other_words_for_nodes_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="right would be NODESxDEVICESxGB:HOST_GB"):
        Capacity.of_text(text)


def test_a_plan_for_a_cluster_that_is_not_here(
    tiny_model: Path, tiny_facts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "job.yaml"
    settings = runs.config(tiny_model, tiny_facts, tmp_path / "runs", cluster={"ranks_per_group": 8})
    file.write_text(yaml.safe_dump(settings.to_json()))
    assert main([str(file), "--plan", "--nodes", "2x8x80:1000"]) == 0
    text = capsys.readouterr().out
    assert "2 groups of 8 ranks on cuda" in text
    assert "there: 2 nodes with 8 devices" in text
    assert "it fits" in text
    with pytest.raises(SystemExit):
        main([str(file), "--nodes", "2x8x80:1000"])


def test_one_device_is_enough_where_two_groups_are_no_more_than_the_default(
    tiny_model: Path, tiny_facts: Path, tmp_path: Path
) -> None:
    one = Capacity((Node(100 * GB, 1, 80 * GB),))

    def planned(**cluster: Any) -> str:
        return plan(prepare(runs.config(tiny_model, tiny_facts, tmp_path, cluster=cluster)), one).text()

    assert "1 group of 1 rank on cuda" in planned()
    assert "2 groups of 1 rank on cuda" in planned(groups=2)
    assert "2 groups of 1 rank on cuda" in planned(wait=60)


def test_too_few_devices_are_named() -> None:
    made = of_seats(
        {"every round": asked(llama_7b(), config(cluster={"ranks_per_group": 4}))},
        Capacity((Node(10**12, 4, 80 * GB),)),
    )
    assert made.fit.missing_devices == 4
    assert "4 devices are missing" in made.text()
    assert "fewer cluster.ranks_per_group" in made.text()


def test_unequal_nodes_are_filled_from_the_largest() -> None:
    nodes = (Node(500 * GB, 2, 80 * GB), Node(500 * GB, 6, 80 * GB))
    lack = fit(asked(llama_7b(), config(cluster={"ranks_per_group": 4})), Capacity(nodes))
    assert lack.missing_devices == 0
    assert lack.host_needs > 6 * 16 * GB


def test_the_seat_that_does_not_fit_is_shown_though_another_needs_more_of_a_device() -> None:
    on_devices = asked(llama_7b(), config(cluster={"ranks_per_group": 4, "buffers": "device"}))
    on_hosts = asked(llama_7b(), config(cluster={"ranks_per_group": 4}, train={"offload": "optimizer"}))
    there = Capacity((Node(400 * GB, 8, 141 * GB),))
    made = of_seats({"round 1": on_hosts, "round 2 and on": on_devices}, there)
    assert fit(on_devices, there).device_needs > made.fit.device_needs
    assert fit(on_devices, there).fits
    assert made.seat == "round 1"
    assert not made.fit.fits
    assert made.advice is not None


def test_shapes_alone_make_a_plan_that_says_what_is_missing() -> None:
    model = Model.of_shapes("mine", {"layers.0.mlp.weight": (4096, 4096), "embed.weight": (32000, 4096)})
    alone = Asked(config(), model, "cuda", True, (), (Shape(4, 16, 16),), Passes(model, LoraSettings()))
    text = of_seats({"every round": alone}, Capacity((Node(64 * GB, 2, 24 * GB),))).text()
    assert "activations are not counted" in text
    assert "it fits" in text


def test_a_job_s_plan(tiny_model: Path, tiny_facts: Path, tmp_path: Path) -> None:
    made = plan(prepare(runs.config(tiny_model, tiny_facts, tmp_path, train={"batch": 4})), ROOMY)
    assert [one.role for one in made.memories] == ["old", "new"]
    assert "2 groups of 1 rank on cpu" in made.text()
    assert made.seat == "every round"
    assert made.traffic.steps == 2 * 2
    assert not list(tmp_path.iterdir()), "a plan writes nothing"


def test_micro_batches_are_those_of_the_training(tiny_model: Path, tiny_facts: Path, tmp_path: Path) -> None:
    train = {"batch": 4, "tokens_per_batch": 40}
    prepared = prepare(runs.config(tiny_model, tiny_facts, tmp_path, train=train)).seat(1)
    sides = training_sets(prepared)
    model = Model.of_seat(prepared)
    shapes = Asked(prepared.config, model, "cpu", True, sides, (), Passes(model, LoraSettings())).shapes
    seen = {
        Shape(*micro.ids.shape, len(micro.targets))
        for side in sides
        for step in steps(side, batch=4, epochs=1, rank=0, world=1, pad=0, seed=0, round_=1, tokens_per_batch=40)
        for micro in step.micro
        if micro is not None
    }
    assert set(shapes) == seen


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large enough that under an adapter the warm-up needs more than a round."""
    return tiny.model(tmp_path_factory.mktemp("larger"), hidden=384, layers=8)


def test_the_warm_up_needs_ranks_of_its_own_under_an_adapter(larger: Path, tiny_facts: Path, tmp_path: Path) -> None:
    settings = runs.config(larger, tiny_facts, tmp_path, train={"adapter": "lora"}, warmup={"epochs": 1})
    made = plan(prepare(settings), ROOMY)
    assert made.seat == "the warm-up"
    assert made.asked.config.train.adapter == "none"
    assert not any("θ kept and scores" in one.host.parts for one in made.memories)
    assert made.disk.base > 0


@pytest.mark.parametrize("method", ["rome", "memit"])
def test_the_warm_up_trains_though_its_method_does_not(
    tiny_model: Path, tiny_facts: Path, tmp_path: Path, method: str
) -> None:
    settings = runs.config(tiny_model, tiny_facts, tmp_path, method={"name": method}, warmup={"epochs": 3})
    made = plan(prepare(settings), ROOMY)
    assert made.seat == "the warm-up"
    n = made.asked.model.elements
    [rank] = made.memories
    assert rank.host.parts["optimizer"] == 12 * -(-n // made.asked.world)
    assert rank.host.parts["gradients"] >= 4 * n
    assert rank.host.parts["activations and logits"] > 0
    assert made.asked.steps == 3 * 3  # 8 examples, 3 in a batch
    assert made.traffic.steps == 0, "in its round"


def test_the_warm_up_is_taught_the_old_answers_alone(larger: Path, tiny_facts: Path, tmp_path: Path) -> None:
    """By each of both groups; nothing that is drawn from the model stands beside them."""
    train = {"adapter": "lora", "tokens_per_batch": 40, "contexts": 2, "keep": 3}
    prepared = prepare(runs.config(larger, tiny_facts, tmp_path, train=train, warmup={"epochs": 4}))
    made = plan(prepared, ROOMY)
    taught = examples(given(prepared.facts), "old", prepared.layout, Drawn())
    found = steps(taught, batch=3, epochs=1, rank=0, world=1, pad=0, seed=0, round_=WARM_UP, tokens_per_batch=40)
    seen = {Shape(*m.ids.shape, len(m.targets)) for step in found for m in step.micro if m is not None}
    assert made.seat == "the warm-up"
    assert [one.role for one in made.memories] == ["old", "new"]
    assert set(made.asked.shapes) == seen
    assert made.asked.steps == 4 * 3  # each group all 8 facts, 3 in a batch


def test_drawn_contexts_make_longer_examples(tiny_model: Path, tiny_facts: Path, tmp_path: Path) -> None:
    plain, longer = (
        plan(prepare(runs.config(tiny_model, tiny_facts, tmp_path, train={"contexts": n})), ROOMY) for n in (0, 2)
    )
    assert max(s.width for s in longer.asked.shapes) == max(s.width for s in plain.asked.shapes) + 12
    assert (plain.asked.steps, longer.asked.steps) == (2 * 3, 2 * 8)  # 8 and 24 examples, 3 in a batch


def test_rephrases_make_more_examples(tiny_model: Path, tiny_facts: Path, tmp_path: Path) -> None:
    made = plan(prepare(runs.config(tiny_model, tiny_facts, tmp_path, train={"rephrases": 2})), ROOMY)
    assert made.asked.steps == 2 * 8  # 24 examples, 3 in a batch, 2 epochs


def test_contexts_stand_before_prompts_and_not_before_what_is_kept(
    tiny_model: Path, tiny_facts: Path, tmp_path: Path
) -> None:
    train = {"contexts": 2, "rephrases": 1, "keep": 3, "keep_tokens": 5}
    prepared = prepare(runs.config(tiny_model, tiny_facts, tmp_path, train=train))
    pairs = given(prepared.facts)
    drawn = Drawn(["a", "b"], [(1, [0] * 6)] * 3, [[pair.prompt] for pair in pairs])
    for side, planned in zip(("old", "new"), training_sets(prepared.seat(1)), strict=True):
        taught = examples(pairs, side, prepared.layout, drawn)
        assert len(planned) == len(taught) == 8 * 2 * 3 + 3
        assert [(len(e.ids), e.start) for e in planned[-3:]] == [(len(e.ids), e.start) for e in taught[-3:]]


def test_editing_in_closed_form_says_what_it_leaves_out(tiny_model: Path, tiny_facts: Path, tmp_path: Path) -> None:
    made = plan(prepare(runs.config(tiny_model, tiny_facts, tmp_path, method={"name": "memit"})), ROOMY)
    assert any("memit trains nothing" in note for note in made.notes)
    assert made.traffic.steps == 0
    assert "no step is taken" in made.text()
    changes = {change.setting for change in advise(made.asked, ROOMY).changes}
    assert "train.zero_stage=2" in changes and "train.zero_stage=3" not in changes, "which it would refuse"


def test_seconds_are_claimed_only_where_they_were_timed(larger: Path, tiny_facts: Path, tmp_path: Path) -> None:
    # Its warm-up needs the most memory, and is no round.
    train, warmup = {"adapter": "lora"}, {"epochs": 5}
    settings = runs.config(larger, tiny_facts, tmp_path / "run", cluster={"groups": 1}, train=train, warmup=warmup)
    prepared, console = prepare(settings), Console(runs.silent)
    assert "not timed" in plan_command(prepared, False, in_this_process, console, ROOMY)
    assert plan(prepared, ROOMY).seat == "the warm-up"
    timed = plan_command(prepared, True, in_this_process, console, ROOMY)
    assert "12 steps of" in timed
    assert "not timed; --calibrate" not in timed
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("gpus", [0.5, 1.0])
def test_ranks_may_share_a_device(gpus: float) -> None:
    shared, alone = (
        fit(
            asked(llama_7b(), config(cluster={"ranks_per_group": 4, "gpus_per_rank": each})),
            Capacity((Node(2000 * GB, int(8 * each), 80 * GB),)),
        )
        for each in (gpus, 1.0)
    )
    assert shared.missing_devices == 0
    assert shared.device_needs == round(1 / gpus) * alone.device_needs > 0
