"""Ranks as Ray actors: groups of them, and a team that watches over them and ends them."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

import psutil
import ray
import torch
from ray.exceptions import ActorDiedError, RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dft_cluster.cluster import secrets
from dft_cluster.errors import InputError
from dft_cluster.ranks.rank import Rank
from dft_cluster.ranks.team import LostRankError
from dft_cluster.runs.console import Progress

P = ParamSpec("P")
T = TypeVar("T")
Tick = Callable[[Mapping[str, Progress]], None]
POLL = 1.0  # seconds between two looks at the ranks while waiting
TIDY = 5.0  # seconds that ranks get to clear away their files
GRACE = 10.0  # seconds in which a rank's death shows, after a peer has lost its connection


class RankProcess(Rank):
    """A rank in a process of its own. `progress` answers while another verb runs."""

    def __init__(self) -> None:
        if secrets.VARIABLE in os.environ:
            secrets.load(os.environ[secrets.VARIABLE])
        super().__init__(ray.util.get_node_ip_address())

    def who(self) -> tuple[str, int, float]:
        """This process: its node, its number there, and when it was born, since numbers are given anew."""
        return ray.get_runtime_context().get_node_id(), os.getpid(), psutil.Process().create_time()

    @ray.method(concurrency_group="watch")
    def progress(self) -> Progress:
        return super().progress()

    @ray.method(concurrency_group="watch")
    def tidy(self) -> None:
        super().tidy()


RankActor: Any = ray.remote(concurrency_groups={"watch": 1})(RankProcess)


class Waiting(Generic[T]):
    """Calls under way in actors. The first failure is raised at once, also while others are waited for: a failed rank's peers
    may hang in a collective."""

    def __init__(self, group: "ActorGroup", verb: str, references: list[Any]) -> None:
        self._group, self._verb, self._references = group, verb, references
        self._pending = list(references)
        group.watch.begin(self)

    def wait(self) -> list[T]:
        watch = self._group.watch
        try:
            while self._pending:
                self.collect(POLL)
                if self._pending:
                    watch.look(self._verb)
                    if watch.still() > watch.timeout:
                        raise LostRankError(
                            f"{self._verb}: no answer from {', '.join(self.busy)} for {watch.timeout:.0f} s (cluster.timeout)"
                        )
        finally:
            watch.under_way.remove(self)
        return [self._get(reference) for reference in self._references]

    @property
    def busy(self) -> list[str]:
        """Who has not answered yet."""
        return [self._group.names[i] for i, r in enumerate(self._references) if r in self._pending]

    def collect(self, seconds: float) -> None:
        """Looks at the answers that come within some seconds; one that is an error is raised."""
        if self._pending:
            ready, self._pending = ray.wait(self._pending, num_returns=len(self._pending), timeout=seconds)
            for reference in ready:
                self._get(reference)

    def _get(self, reference: Any) -> T:
        name = self._group.names[self._references.index(reference)]
        try:
            return ray.get(reference)  # type: ignore[no-any-return]
        except RayTaskError as error:
            cause = error.cause
            if _of_communication(cause):
                gone = self._group.watch.gone(GRACE) or f"rank {name} lost its connection"
                raise LostRankError(f"{gone} during {self._verb}: {str(cause).splitlines()[0]}") from error
            raise cause from error
        except RayActorError as error:
            if error.actor_init_failed:  # a new one would fail alike
                raise InputError(f"rank {name} could not be started: {str(error).splitlines()[-1]}") from error
            raise LostRankError(f"rank {name} died during {self._verb}: {str(error).splitlines()[0]}") from error
        except RayError as error:  # its node, or what it answered, is gone
            raise LostRankError(f"rank {name} is lost during {self._verb}: {str(error).splitlines()[0]}") from error


def _of_communication(cause: BaseException) -> bool:
    """Whether a rank failed because another one, or the way to it, is gone."""
    told = str(cause)
    return isinstance(cause, torch.distributed.DistError) or (
        isinstance(cause, RuntimeError) and any(word in told for word in ("gloo", "NCCL", "Connection", "TCPStore"))
    )


class Watch:
    """Asks ranks where they stand while a verb runs, and gives those up that do not answer or stand still."""

    def __init__(self, actors: Sequence[Any], names: Sequence[str], timeout: float, hang: float, tick: Tick) -> None:
        self.actors, self.names = list(actors), list(names)
        self.timeout, self._hang, self._tick = timeout, hang, tick
        self._asked: dict[str, Any] = {}
        self._answered: dict[str, float] = {}
        self._moved: dict[str, tuple[Progress | None, float]] = {}
        self.under_way: list[Waiting[Any]] = []
        self.silent: list[str] = []
        """Ranks that did not answer when they were last looked for."""

    def begin(self, started: Waiting[Any]) -> None:
        """A verb has been started: from now on time counts, but for ranks for which it does already: those that are at work,
        and those that owe an answer."""
        now, counting = time.monotonic(), self._busy() | self._owing()
        for name in self.names:
            if name not in counting:
                self._answered[name], self._moved[name] = now, (None, now)
        self.under_way.append(started)

    def _owing(self) -> set[str]:
        """Ranks that were asked where they stand and have not said so yet."""
        asked = {reference: name for name, reference in self._asked.items()}
        return {asked[one] for one in ray.wait(list(asked), num_returns=len(asked), timeout=0)[1]} if asked else set()

    def _busy(self) -> set[str]:
        return {name for one in self.under_way for name in one.busy}

    def look(self, verb: str) -> None:
        """One look at all that is under way, and at every rank; a rank has one question open at a time."""
        for one in self.under_way:
            one.collect(0)
        for actor, name in zip(self.actors, self.names, strict=True):
            if name not in self._asked:
                self._asked[name] = actor.progress.remote()
        asked = {reference: name for name, reference in self._asked.items()}
        ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=POLL)
        seen: dict[str, Progress] = {}
        now = time.monotonic()
        for reference in ready:
            name = asked[reference]
            del self._asked[name]
            try:
                seen[name] = ray.get(reference)
            except ActorDiedError as error:
                if name in self._busy():
                    continue  # the verb's own answer says so, with the reason
                raise LostRankError(f"rank {name} died during {verb}: {str(error).splitlines()[0]}") from error
            except RayError:
                continue  # it may come back
            self._answered[name] = now
            before = self._moved[name][0]
            if before is None or seen[name][:3] != before[:3]:  # a loss that is no number differs from itself
                self._moved[name] = (seen[name], now)
        self._tick(seen)
        self._give_up(verb, now)

    def _give_up(self, verb: str, now: float) -> None:
        self.silent = [name for name in self.names if now - self._answered[name] > self._hang]
        if self.silent:
            raise LostRankError(
                f"rank {', '.join(self.silent)} did not answer for {self._hang:g} s during {verb} (cluster.hang)"
            )
        still = [name for name, (at, since) in self._moved.items() if _stepping(at) and now - since > self._hang]
        if still:
            told = ", ".join(f"{name} at {at[1]} of {at[2]}" for name in still if (at := self._moved[name][0]))
            raise LostRankError(f"no step for {self._hang:g} s during {verb} (cluster.hang): {told}")

    def still(self) -> float:
        """Seconds since any rank was seen to get on."""
        return time.monotonic() - max(since for _, since in self._moved.values())

    def gone(self, within: float) -> str | None:
        """The ranks that are dead, as far as it shows within some seconds."""
        until = time.monotonic() + within
        while time.monotonic() < until:
            dead = [n for a, n in zip(self.actors, self.names, strict=True) if _is_dead(a)]
            if dead:
                return f"rank {', '.join(dead)} died"
            time.sleep(POLL / 2)
        return None


def _stepping(progress: Progress | None) -> bool:
    """In a phase that counts steps, and not at its end."""
    return progress is not None and progress[1] < progress[2]


def _is_dead(actor: Any) -> bool:
    try:
        ray.get(actor.progress.remote(), timeout=POLL)
    except ActorDiedError:
        return True
    except RayError:
        return False
    return False


class ActorGroup:
    """The ranks of one world, or of several."""

    def __init__(self, actors: Sequence[Any], names: Sequence[str], watch: Watch) -> None:
        self.actors, self.names, self.watch = list(actors), list(names), watch

    @property
    def size(self) -> int:
        return len(self.actors)

    def start(self, verb: Callable[Concatenate[Any, P], T], *args: P.args, **kwargs: P.kwargs) -> Waiting[T]:
        # What all ranks are given is put into the object store once.
        shared = [ray.put(argument) if isinstance(argument, list | tuple | dict) else argument for argument in args]
        return self._started(verb, [getattr(actor, verb.__name__).remote(*shared, **kwargs) for actor in self.actors])

    def call(self, verb: Callable[Concatenate[Any, P], T], *args: P.args, **kwargs: P.kwargs) -> list[T]:
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

    def __init__(self, groups: Sequence[Sequence[Any]], timeout: float, tick: Tick, hang: float = float("inf")) -> None:
        self.paired = len(groups) == 2
        labels = ("old", "new") if self.paired else ("rank",)
        named = [
            [(actor, f"{label}-{i}") for i, actor in enumerate(g)] for label, g in zip(labels, groups, strict=True)
        ]
        everyone = [one for group in named for one in group]
        self._watch, self._tick = Watch(*_unzipped(everyone), timeout, hang, tick), tick
        made = [ActorGroup(*_unzipped(group), self._watch) for group in named]
        self.old, self.new = made[0], made[-1]
        self.everyone = ActorGroup(*_unzipped(everyone), self._watch)
        self._who: dict[str, Any] = {}
        self.notes: list[str] = []
        self.given: dict[str, float] = {}

    def know(self) -> None:
        """Learns every rank's process, so that one that answers no more can be ended; they are up then."""
        self._who = {name: actor.who.remote() for actor, name in _named(self.everyone)}
        pending, since = list(self._who.values()), time.monotonic()
        while left := ray.wait(pending, num_returns=len(pending), timeout=POLL)[1]:
            self._tick({})
            if len(left) < len(pending):
                pending, since = left, time.monotonic()
            elif time.monotonic() - since > self._watch.timeout:
                names = [name for name, reference in self._who.items() if reference in left]
                raise LostRankError(
                    f"rank {', '.join(names)} did not start within {self._watch.timeout:.0f} s (cluster.timeout)"
                )

    def close(self) -> None:
        """Ends the ranks, whatever they are at; those that still can clear away what they fetched."""
        answering = [actor for actor, name in _named(self.everyone) if name not in self._watch.silent]
        tidying = [actor.tidy.remote() for actor in answering]
        if tidying:
            ray.wait(tidying, num_returns=len(tidying), timeout=TIDY)
        for actor in self.everyone.actors:
            ray.kill(actor)
        for name in self._watch.silent:
            self._end(name)

    def _end(self, name: str) -> None:
        """A stopped process cannot take Ray's request to exit: its node ends it by its number."""
        who = self._who.get(name)
        if who is None or not ray.wait([who], timeout=0)[0]:
            return
        node, number, born = ray.get(who)
        here = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
        ray.wait([_kill.options(scheduling_strategy=here).remote(number, born)], timeout=TIDY)


def _named(group: ActorGroup) -> list[tuple[Any, str]]:
    return list(zip(group.actors, group.names, strict=True))


def _unzipped(named: Sequence[tuple[Any, str]]) -> tuple[list[Any], list[str]]:
    return [actor for actor, _ in named], [name for _, name in named]


@ray.remote(num_cpus=0)
def _kill(number: int, born: float) -> None:
    try:
        process = psutil.Process(number)
        if process.create_time() == born:
            process.kill()
    except psutil.NoSuchProcess:
        return  # it is gone already
