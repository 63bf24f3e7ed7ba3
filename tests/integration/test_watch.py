"""Two groups at work at the same time: whoever is lost or fails is told at once, whichever group is waited for."""

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
import ray

from dft_cluster.cluster.actors import ActorTeam, RankProcess
from dft_cluster.ranks.team import LostRankError
from tests.integration.runs import silent

pytestmark = pytest.mark.usefixtures("cluster")
HANG = 6.0


class Sleeper(RankProcess):
    """A rank that works for as long as it is told, without steps."""

    def work(self, seconds: float, wrong: str = "") -> None:
        if wrong:
            raise ValueError(wrong)
        time.sleep(seconds)


@pytest.fixture
def team() -> Iterator[ActorTeam]:
    kind: Any = ray.remote(concurrency_groups={"watch": 1})(Sleeper)
    made = ActorTeam([[kind.options(num_cpus=0.1).remote()] for _ in range(2)], 120, silent, HANG)
    made.know()
    yield made
    made.close()


def strike(team: ActorTeam, name: str, how: signal.Signals) -> None:
    _, number, _ = ray.get(team._who[name])
    os.kill(number, how)


def test_a_death_is_told_while_the_other_group_is_waited_for(team: ActorTeam) -> None:
    old, _new = team.old.start(Sleeper.work, 60), team.new.start(Sleeper.work, 60)
    strike(team, "new-0", signal.SIGKILL)
    with pytest.raises(LostRankError, match="rank new-0 died during work"):
        old.wait()


def test_a_death_of_a_rank_that_has_nothing_to_do_is_told_too(team: ActorTeam) -> None:
    new = team.new.start(Sleeper.work, 60)
    strike(team, "old-0", signal.SIGKILL)
    with pytest.raises(LostRankError, match="rank old-0 died during work"):
        new.wait()


def test_an_error_is_told_while_the_other_group_is_waited_for(team: ActorTeam) -> None:
    old, _new = team.old.start(Sleeper.work, 60), team.new.start(Sleeper.work, 60, "no such fact")
    with pytest.raises(ValueError, match="no such fact"):
        old.wait()


def test_a_rank_that_stands_still_does_not_gain_time_when_another_group_is_done(team: ActorTeam) -> None:
    team.new.start(Sleeper.work, 60)
    strike(team, "new-0", signal.SIGSTOP)
    with pytest.raises(LostRankError, match="rank new-0 did not answer for 6 s"):
        for _ in range(5):
            team.old.call(Sleeper.work, HANG - 3)


def test_a_rank_that_stands_still_does_not_gain_time_by_what_the_other_group_does(team: ActorTeam) -> None:
    strike(team, "old-0", signal.SIGSTOP)
    with pytest.raises(LostRankError, match="rank old-0 did not answer for 6 s"):
        for _ in range(5):
            team.new.call(Sleeper.work, HANG - 3)


def test_a_process_that_has_another_s_number_is_left_alone(team: ActorTeam) -> None:
    """Numbers are given anew: a rank is ended by number and birth."""
    node, number, born = ray.get(team._who["new-0"])
    team._who["new-0"] = ray.put((node, number, born - 1))
    team._end("new-0")
    assert team.new.call(Sleeper.who) == [(node, number, born)]
    team._who["new-0"] = ray.put((node, number, born))
    team._end("new-0")
    with pytest.raises(LostRankError, match="rank new-0 died"):
        team.new.call(Sleeper.who)
