"""What ranks are built for, and with what: an adapter, weights that no round trains, the threads they had."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dft_cluster.config import Config, ModelSettings
from dft_cluster.local import in_this_process
from dft_cluster.methods.prepare import Prepared, prepare
from dft_cluster.methods.run import run
from dft_cluster.patch import Folder
from dft_cluster.ranks.rank import Rank, Source
from dft_cluster.runs.console import Console
from tests.integration import runs
from tests.integration.runs import Crash, crash_at


def test_an_adapter_s_dropout_is_for_training_alone(tiny_model: Path, tiny_facts: Path, tmp_path: Path) -> None:
    """From the first moment on: what a resumed run measures before it trains is what it had."""
    losses = []
    for dropout in (0.0, 0.5):
        settings = runs.config(tiny_model, tiny_facts, tmp_path, method={"name": "lora"}, lora={"dropout": dropout})
        prepared = prepare(settings).seat(1)
        examples = [prepared.layout.example(fact.prompt, fact.new) for fact in prepared.facts]
        with in_this_process(prepared, Source(settings.model), Console(runs.silent)) as team:
            for train in (True, False):
                [training] = team.everyone.call(lambda rank: [part.training for part in rank._engine.module.modules()])
                assert training and not any(training)
                if train:
                    [tuned] = team.everyone.call(Rank.fine_tune, examples, prepared.layout.pad, 1, "new")
                    losses.append(tuned.losses)
    assert losses[0] != losses[1]


def test_a_folder_s_weights_are_those_of_what_no_round_trains_as_well(
    tiny_model: Path, tiny_facts: Path, tmp_path: Path
) -> None:
    prepared = prepare(runs.config(tiny_model, tiny_facts, tmp_path, method={"name": "lora"})).seat(1)
    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    [file] = other.glob("*.safetensors")
    save_file({name: tensor + 1 for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    built, later = Source(prepared.config.model), Source(ModelSettings(name=str(other)))
    with in_this_process(prepared, built, Console(runs.silent)) as team:
        assert prepared.standing
        for source, folder in ((later, other), (built, tiny_model)):
            team.everyone.call(Rank.load, source)
            [weights] = team.everyone.call(lambda rank: rank._engine.weights)
            for p in prepared.standing:
                assert torch.equal(weights[p.name].detach().flatten(), Folder(folder).flat(p.saved, 0, p.numel))


def test_groups_of_another_size_get_threads_anew(tiny_model: Path, tiny_facts: Path, tmp_path: Path) -> None:
    """Those of the same size get what they had: the bits hang on it."""
    settings = runs.config(tiny_model, tiny_facts, tmp_path, cluster={"threads": None})

    class Seen(Exception):
        pass

    def given(settings: Config) -> tuple[float | None, int | None]:
        seen: list[Config] = []

        def launch(seat: Prepared, *_: Any) -> Any:
            seen.append(seat.config)
            raise Seen

        with pytest.raises(Seen):
            run(prepare(settings), launch, Console(runs.silent))
        return seen[0].cluster.cpus_per_rank, seen[0].cluster.threads

    with pytest.raises(Crash):
        runs.alone(settings, crash_at("round 2"))
    folder = tmp_path / "dft"
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(told | {"gpus_per_rank": 0.0, "cpus_per_rank": 1.0, "threads": 2}))
    other = runs.config(tiny_model, tiny_facts, tmp_path, cluster={"threads": None, "ranks_per_group": 2})
    assert given(settings) == (1.0, 2)
    two = runs.config(tiny_model, tiny_facts, tmp_path, cluster={"threads": None, "groups": 2})
    assert given(two) == (1.0, 2), "the bits do not hang on the number of groups"
    assert given(other) == (None, None)
