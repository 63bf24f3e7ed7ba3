"""A team of one rank in this very process."""

from collections.abc import Callable, Sequence
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from dft_cluster.ranks.rank import Rank

P = ParamSpec("P")
T = TypeVar("T")


class Done(Generic[T]):
    def __init__(self, answers: list[T]) -> None:
        self._answers = answers

    def wait(self) -> list[T]:
        return self._answers


class LocalGroup:
    size = 1

    def __init__(self, rank: Rank) -> None:
        self._rank = rank

    def start(self, verb: Callable[Concatenate[Any, P], T], *args: P.args, **kwargs: P.kwargs) -> Done[T]:
        return Done([verb(self._rank, *args, **kwargs)])

    def call(self, verb: Callable[Concatenate[Any, P], T], *args: P.args, **kwargs: P.kwargs) -> list[T]:
        return self.start(verb, *args, **kwargs).wait()

    def start_each(self, verb: Callable[..., T], arguments: Sequence[tuple[Any, ...]]) -> Done[T]:
        [own] = arguments
        return Done([verb(self._rank, *own)])

    def each(self, verb: Callable[..., T], arguments: Sequence[tuple[Any, ...]]) -> list[T]:
        return self.start_each(verb, arguments).wait()


class LocalTeam:
    """One group of one rank: old and new one after the other."""

    paired = False

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.given: dict[str, float] = {}
        self.old = self.new = self.everyone = LocalGroup(Rank())

    def close(self) -> None:
        self.everyone.call(Rank.leave)
