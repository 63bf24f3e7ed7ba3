import io

import pytest
from rich.console import Console as Rich

from dft_cluster.runs import console
from dft_cluster.runs.console import Console

FIGURES = {name: {"token": 50.04, "exact": 25} for name in ("reliability", "generality", "locality")}


@pytest.fixture
def said():
    return []


@pytest.fixture
def plain(said):
    return Console(said.append)


def test_every_line_says_when(plain, said):
    plain.say("hello [bold]")
    assert said[0].startswith("[") and said[0].endswith(" s] hello [bold]")


def test_a_phase_is_a_line_in_a_log(plain, said):
    plain.phase("round 1")
    assert said[0].endswith("round 1 …")


def test_a_round_is_told_in_one_line(plain, said):
    plain.round({"round": 0, **FIGURES}, 4)
    assert said[0].endswith("round 0: reliability 50.0/25.0, generality 50.0/25.0, locality 50.0/25.0 (token/exact %)")
    plain.round({"round": 1, **FIGURES}, 4)
    assert "at most 0 s left" in said[1]
    plain.round({"round": 4, **FIGURES}, 4)
    assert "left" not in said[2]


def test_a_round_that_was_not_measured_says_so(plain, said):
    plain.round({"round": 3}, 3)
    assert said[0].endswith("round 3: not measured")


def test_a_long_wait_is_spoken_of_now_and_then(plain, said, monkeypatch):
    plain.phase("round 1")
    plain.tick({"old-0": ("old", 3, 12, 1.23456)})
    assert len(said) == 1, "not more often than every few seconds"
    monkeypatch.setattr(console, "QUIET", -1.0)
    plain.tick({"old-0": ("old", 3, 12, 1.23456), "new-0": ("build", 0, 0, 0.0)})
    assert said[1].endswith("round 1 … old-0: old 3/12, loss 1.235 | new-0: build")


def test_a_log_that_is_no_terminal_gets_plain_lines(capsys):
    told = Console()
    told.phase("round 1")
    told.say("[red]not markup[/red] " + "x" * 300)
    told.close()
    out = capsys.readouterr().out
    assert "round 1 …" in out and "[red]not markup[/red] " + "x" * 300 in out and "\x1b" not in out


def test_a_terminal_shows_a_live_line_and_keeps_what_is_said():
    screen = io.StringIO()
    told = Console()
    told._rich = Rich(file=screen, force_terminal=True, highlight=False, width=100)
    told.phase("round 1")
    told.tick({"old-0": ("old", 3, 12, 1.5)})
    told.say("a line that stays")
    told.tick({"old-0": ("old", 4, 12, 1.5)})
    told.close()
    told.close()
    shown = screen.getvalue()
    assert "old 3/12, loss 1.500" in shown and "a line that stays" in shown and "old 4/12" in shown
    assert "\x1b[?25h" in shown[shown.index("old 4/12") :], "the cursor is shown again"


def test_a_stream_without_a_screen_is_no_terminal():
    told = Console()
    told._rich = Rich(file=io.StringIO())
    assert not told._terminal
