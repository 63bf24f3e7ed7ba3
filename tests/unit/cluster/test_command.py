"""Where a command's runs go."""

from pathlib import Path

import pytest

from dft_cluster.cluster.command import absolute
from dft_cluster.errors import InputError


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
