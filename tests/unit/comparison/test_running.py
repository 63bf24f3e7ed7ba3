"""What the methods of a comparison share: the warmed model that their runs start from."""

from pathlib import Path
from typing import Any

import pytest

from dft_cluster.comparison import running
from dft_cluster.comparison.loading import checked
from dft_cluster.comparison.running import Runs
from dft_cluster.comparison.settings import sections
from dft_cluster.config import Config
from dft_cluster.runs.console import Console
from dft_cluster.runs.storage import Storage


@pytest.mark.parametrize(
    ("base", "methods"),
    [
        ({"train": {"within": 1e-3, "lr": 3e-5}}, ("dft", "interpolate")),
        ({"method": {"layers": [6]}, "train": {"lr": 3e-5}}, ("rome", "ft_c")),
    ],
)
def test_a_warm_up_heeds_nothing_that_goes_with_the_methods_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, base: dict[str, Any], methods: tuple[str, ...]
) -> None:
    made: list[Config] = []

    def warmed(config: Config, *_: Any) -> str:
        made.append(config)
        return str(tmp_path / "warm" / "m.d.0" / "base")

    monkeypatch.setattr(running, "prepare", lambda config, _facts: config)
    monkeypatch.setattr(running.runs, "warmed", warmed)
    tree = {
        "base": {"warmup": {"epochs": 3}, **base},
        "models": {"m": {}},
        "data": {"d": {}},
        "methods": {name: {"method": {"name": name}} for name in methods},
    }
    settings = checked(tree)
    runs = Runs(None, Console(lambda _: None), Storage(str(tmp_path)))  # type: ignore[arg-type]
    assert runs.warms(sections(settings, "m", "d"))
    runs.warm(sections(settings, "m", "d"), 0, "m.d.0", [])
    [config] = made
    assert (config.method.name, config.method.layers, config.train.within) == ("full", "auto", None)
    assert (config.train.lr, config.warmup.epochs) == (3e-5, 3)
