"""Ranks as Ray actors: groups of them, and a team that ends them."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError

from dft_cluster.ranks.rank import Rank
from dft_cluster.runs.console import Progress

P = ParamSpec("P")
T = TypeVar("T")
Tick = Callable[[Mapping[str, Progress]], None]
POLL = 1.0  # seconds between two looks at the ranks while waiting


class LostRankError(RuntimeError):
    """A rank is gone, or did not answer in time; the last finished round is safe."""


@ray.remote(concurrency_groups={"watch": 1})
class RankActor(Rank):
    """A rank in a process of its own. `progress` answers while another verb runs."""

    def __init__(self) -> None:
        super().__init__(ray.util.get_node_ip_address())

    @ray.method(concurrency_group="watch")
    def progress(self) -> Progress:
        return super().progress()


class Waiting(Generic[T]):
    """Calls under way in actors. The first failure is raised at once: its peers may hang in a collective."""

    def __init__(self, group: "ActorGroup", verb: str, references: list[Any]) -> None:
        self._group, self._verb, self._references = group, verb, references

    def wait(self) -> list[T]:
        deadline = time.monotonic() + self._group.timeout
        pending = list(self._references)
        while pending:
            ready, pending = ray.wait(pending, num_returns=len(pending), timeout=POLL)
            for reference in ready:
                self._get(reference)
            if pending:
                self._group.look()
                if time.monotonic() > deadline:
                    names = [self._group.names[i] for i, r in enumerate(self._references) if r in pending]
                    raise LostRankError(
                        f"{self._verb}: no answer from {', '.join(names)} for {self._group.timeout:.0f} s (cluster.timeout)"
                    )
        return [self._get(reference) for reference in self._references]

    def _get(self, reference: Any) -> T:
        name = self._group.names[self._references.index(reference)]
        try:
            return ray.get(reference)  # type: ignore[no-any-return]
        except (ActorDiedError, ActorUnavailableError) as error:
            raise LostRankError(f"rank {name} died during {self._verb}: {str(error).splitlines()[0]}") from error
        except RayTaskError as error:
            raise error.cause from error


class ActorGroup:
    """The ranks of one world, or of several."""

    def __init__(self, actors: Sequence[Any], names: Sequence[str], timeout: float, look: Callable[[], None]) -> None:
        self.actors, self.names, self.timeout, self.look = list(actors), list(names), timeout, look

    @property
    def size(self) -> int:
        return len(self.actors)

    def start(self, verb: Callable[Concatenate[Rank, P], T], *args: P.args, **kwargs: P.kwargs) -> Waiting[T]:
        # What all ranks are given is put into the object store once.
        shared = [ray.put(argument) if isinstance(argument, list | tuple | dict) else argument for argument in args]
        return self._started(verb, [getattr(actor, verb.__name__).remote(*shared, **kwargs) for actor in self.actors])

    def call(self, verb: Callable[Concatenate[Rank, P], T], *args: P.args, **kwargs: P.kwargs) -> list[T]:
        return self.start(verb, *args, **kwargs).wait()

    def start_each(self, verb: Callable[..., T], arguments: Sequence[tuple[Any, ...]]) -> Waiting[T]:
        pairs = zip(self.actors, arguments, strict=True)
        return self._started(verb, [getattr(actor, verb.__name__).remote(*own) for actor, own in pairs])

    def each(self, verb: Callable[..., T], arguments: Sequence[tuple[Any, ...]]) -> list[T]:
        return self.start_each(verb, arguments).wait()

    def _started(self, verb: Callable[..., T], references: list[Any]) -> Waiting[T]:
        return Waiting(self, verb.__name__, references)


class ActorTeam:
    """The old group and the new group side by side, or one group for both."""

    def __init__(self, groups: Sequence[Sequence[Any]], timeout: float, tick: Tick) -> None:
        self.paired, self._tick = len(groups) == 2, tick
        labels = ("old", "new") if self.paired else ("rank",)
        made = [
            ActorGroup(actors, [f"{label}-{i}" for i in range(len(actors))], timeout, self.look)
            for label, actors in zip(labels, groups, strict=True)
        ]
        self.old, self.new = made[0], made[-1]
        everyone = [(a, n) for group in made for a, n in zip(group.actors, group.names, strict=True)]
        self.everyone = ActorGroup([a for a, _ in everyone], [n for _, n in everyone], timeout, self.look)

    def look(self) -> None:
        """Asks every rank where it stands; one that cannot answer now is left out."""
        everyone = self.everyone
        asked = {actor.progress.remote(): name for actor, name in zip(everyone.actors, everyone.names, strict=True)}
        ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=POLL)
        seen: dict[str, Progress] = {}
        for reference in ready:
            try:
                seen[asked[reference]] = ray.get(reference)
            except (ActorDiedError, ActorUnavailableError):
                continue  # the verb's own answer says so, with the reason
        self._tick(seen)

    def close(self) -> None:
        for actor in self.everyone.actors:
            ray.kill(actor)
