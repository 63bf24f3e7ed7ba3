"""Where a command's runs go."""

from pathlib import Path

import pytest

from dft_cluster.cluster.command import absolute


@pytest.mark.parametrize(
    ("given", "meant"),
    [("/a/b", "/a/b"), ("s3://bucket/~/runs", "s3://bucket/~/runs"), ("runs", str(Path("runs").absolute())),
     ("~/runs", str(Path.home() / "runs"))],
)  # fmt: skip
def test_a_folder_is_absolute_for_every_rank(given: str, meant: str) -> None:
    assert absolute(given) == meant
