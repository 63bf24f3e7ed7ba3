"""What listens while a run is at work: Ray, and the stores at which ranks meet; the driver does not."""

from pathlib import Path

import psutil
import pytest
import ray

from tests.integration import runs

pytestmark = pytest.mark.usefixtures("cluster")
ANYWHERE = ("::", "0.0.0.0")


def listening(process: psutil.Process) -> set[tuple[str, int]]:
    return {(c.laddr.ip, c.laddr.port) for c in process.net_connections(kind="inet") if c.status == psutil.CONN_LISTEN}


def below(word: str) -> list[psutil.Process]:
    """Processes of this one's with a word in their command."""
    return [one for one in psutil.Process().children(recursive=True) if word in " ".join(one.cmdline())]


@ray.remote(num_cpus=0)
class Plain:
    def listening(self) -> int:
        return len(listening(psutil.Process()))


def test_nothing_listens_beyond_ray_and_the_ranks_meetings(tiny_model: Path, tiny_facts: Path, tmp_path: Path) -> None:
    plain = Plain.remote()
    rays_own = ray.get(plain.listening.remote())
    ray.kill(plain)
    before = listening(psutil.Process())
    seen: list[set[tuple[str, int]]] = []
    tracking: list[psutil.Process] = []
    tracked: list[str] = []

    def look(text: str) -> None:
        if "round 2 …" in text:
            assert listening(psutil.Process()) == before, "the driver"
            seen.extend(map(listening, below("RankProcess")))
            tracking.extend(below("wandb-core"))
            tracked.extend(address for one in tracking for address, _ in listening(one))

    two_by_two = {"groups": 2, "ranks_per_group": 2, "threads": 1}
    offline = {"wandb": "offline"}
    runs.on_cluster(
        runs.config(tiny_model, tiny_facts, tmp_path, method={"rounds": 2}, cluster=two_by_two, track=offline), look
    )
    assert len(seen) == 4
    assert tracking
    assert set(tracked) <= {"127.0.0.1", "::1"}, "W&B's own process serves this machine alone"
    everywhere = [sum(address in ANYWHERE for address, _ in one) for one in seen]
    # A store in each group's first rank, and one in each rank of the old group, where its pair meets.
    assert sorted(everywhere) == [rays_own, rays_own + 1, rays_own + 1, rays_own + 2]
    node = ray.util.get_node_ip_address()
    others = {address for one in seen for address, _ in one} - set(ANYWHERE)
    assert others <= {node}, "gloo listens at the node's own address"
