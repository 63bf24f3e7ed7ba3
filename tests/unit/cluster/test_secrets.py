"""Keys from a file."""

import os

import pytest

from dft_cluster.cluster import secrets
from dft_cluster.errors import InputError


def written(tmp_path, text, mode=0o600):
    file = tmp_path / "keys"
    file.write_text(text)
    file.chmod(mode)
    return str(file)


def test_every_line_reaches_the_environment(tmp_path, monkeypatch):
    for name in ("ONE_KEY", "OTHER_KEY"):
        monkeypatch.setenv(name, "before")
    secrets.load(written(tmp_path, "# of W&B\nONE_KEY=abc=1\n\nexport OTHER_KEY='d e'\n"))
    assert (os.environ["ONE_KEY"], os.environ["OTHER_KEY"]) == ("abc=1", "d e")


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_file_that_others_can_read_is_refused(tmp_path, mode):
    with pytest.raises(InputError, match="chmod 600"):
        secrets.load(written(tmp_path, "A=b\n", mode))


def test_what_is_wrong_is_told_without_the_content_and_nothing_of_it_is_taken(tmp_path, monkeypatch):
    monkeypatch.setenv("A", "before")
    with pytest.raises(InputError, match="line 2") as told:
        secrets.load(written(tmp_path, "A=b\nhush hush\n"))
    assert "hush" not in str(told.value)
    assert os.environ["A"] == "before"
    with pytest.raises(InputError, match="no such file on this node"):
        secrets.load(str(tmp_path / "none"))
