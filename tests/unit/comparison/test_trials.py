"""What a trial costs its method."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dft_cluster.comparison import trials
from dft_cluster.comparison.loading import checked
from dft_cluster.comparison.running import Runs
from dft_cluster.comparison.settings import sections
from dft_cluster.facts.fact import Fact
from dft_cluster.runs.console import Console
from dft_cluster.runs.storage import Storage


@pytest.mark.parametrize(("told", "seconds"), [(5.0, 7.0), (30.0, 30.0)])
def test_a_trial_costs_its_seconds_times_its_ranks_and_neither_warm_up_nor_covariance(
    monkeypatch: pytest.MonkeyPatch, told: float, seconds: float
) -> None:
    """`told` is what the run itself says: more than this process saw, where an earlier one was killed."""
    now = [0.0]
    monkeypatch.setattr(trials.time, "perf_counter", lambda: now[0])

    def takes(amount: float, result: Any = None) -> Any:
        def work(*_: Any) -> Any:
            now[0] += amount
            return result

        return work

    scores = {metric: {"token": 50.0} for metric in ("reliability", "generality", "locality")}
    memory = {f"{side}-{i}": 1 for side in ("old", "new") for i in (0, 1)}
    record = SimpleNamespace(
        result={"seconds": told},
        rounds=[
            {"round": 0, "memory": memory, "seconds": {"evaluate": 1.0}},
            {"round": 1, "memory": memory, "seconds": {"covariance": 4.5, "new": 0.5}, **scores},
        ],
    )
    runs: Any = SimpleNamespace(warm=takes(100.0), config=takes(0.0), run=takes(7.0, record))
    tree = {"models": {"m": {}}, "data": {"d": {}}, "methods": {"dft": {}}, "keep": "all"}
    settings = checked({**tree, "search": {"over": {"dft": {"train.lr": [1e-4]}}}})
    assert settings.search is not None
    facts = [Fact("a", "Where?", "here", "there")]
    bench = trials.Bench(trials.Searches(settings, settings.search, {"d": facts}, runs), "m", "d", "dft")
    measured, cost = bench(0, {"train.lr": 1e-4}, facts)
    assert measured == {1: dict.fromkeys(scores, 50.0)}
    assert cost == 4 * (seconds - 4.5)


def test_a_refused_trial_costs_the_ranks_that_were_there(tmp_path: Path) -> None:
    """Two groups are asked for where none is named; one process is one rank."""
    tree = {
        "models": {"m": {}}, "data": {"d": {}}, "methods": {"full": {"method": {"name": "full"}}}, "run": {"dir": str(tmp_path)},
    }  # fmt: skip
    settings = checked({**tree, "search": {"over": {"full": {"train.lr": [1e-4]}}}})
    runs = Runs(None, Console(lambda _: None), Storage(str(tmp_path)))  # type: ignore[arg-type]
    config = runs.config(sections(settings, "m", "d", "full"), 0, "search/m.d.full", "trial-000-1", "none")
    assert runs.ranks(config) == config.world == 2
    folder = tmp_path / "search" / "m.d.full" / "trial-000-1"
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"round": 0, "memory": {"old-0": 1}}\n{"round": 1, "mem')
    assert runs.ranks(config) == 1
