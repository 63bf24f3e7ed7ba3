"""Where a command's runs go, and how one ends that was asked for wrongly."""

import runpy
import sys
from pathlib import Path

import pytest

from dft_cluster.cluster.command import WRONG, absolute
from dft_cluster.errors import InputError

ROOT = Path(__file__).parents[3]


def test_a_home_that_there_is_not_is_told() -> None:
    with pytest.raises(InputError, match=r"run\.dir: '~nobody-of-this-name/runs'"):
        absolute("~nobody-of-this-name/runs")


@pytest.mark.parametrize(
    ("given", "meant"),
    [("/a/b", "/a/b"), ("s3://bucket/~/runs", "s3://bucket/~/runs"), ("runs", str(Path("runs").absolute())),
     ("~/runs", str(Path.home() / "runs"))],
)  # fmt: skip
def test_a_folder_is_absolute_for_every_rank(given: str, meant: str) -> None:
    assert absolute(given) == meant


@pytest.mark.parametrize("job", ["update", "compare", "demo", "selftest"])
def test_a_config_that_is_not_there_is_told_in_one_line(
    job: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [job, "nowhere.yaml", "facts.limit=2"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "jobs" / f"{job}.py"), run_name="__main__")
    assert ended.value.code == WRONG
    assert capsys.readouterr().err == "error: config nowhere.yaml: no such file\n"
