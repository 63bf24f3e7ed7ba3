"""Ranks in groups, addressed by verb: `group.call(Rank.keep)` asks every rank of a group, wherever it runs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class LostRankError(RuntimeError):
    """Ranks are gone, or do not answer in time; the last finished round is safe, and new ranks can go on from it."""

    given: Mapping[str, float]
    """What they had been given by the cluster, as in `Team`."""

    def __init__(self, said: str, given: Mapping[str, float] | None = None) -> None:
        super().__init__(said)
        self.given = given or {}


class Pending(Protocol[T]):
    """Calls under way; `wait` gives every rank's answer, in rank order."""

    def wait(self) -> list[T]: ...


class Group(Protocol):
    """The ranks of one world, or of both.

    A collective call has to reach all ranks of a world before any of them is waited for: `start` does.
    """

    @property
    def size(self) -> int: ...

    def start(self, verb: Callable[Concatenate[Any, P], T], *args: P.args, **kwargs: P.kwargs) -> Pending[T]:
        """Asks every rank the same."""
        ...

    def call(self, verb: Callable[Concatenate[Any, P], T], *args: P.args, **kwargs: P.kwargs) -> list[T]:
        """Asks every rank the same and waits."""
        ...

    def start_each(self, verb: Callable[..., T], arguments: Sequence[tuple[Any, ...]]) -> Pending[T]:
        """Asks every rank something of its own."""
        ...

    def each(self, verb: Callable[..., T], arguments: Sequence[tuple[Any, ...]]) -> list[T]:
        """Asks every rank something of its own and waits."""
        ...


class Team(Protocol):
    """The old group, the new group (with one group both are the same), and everyone."""

    notes: list[str]
    """What the user should know of how the ranks were placed."""
    given: dict[str, float]
    """What a cluster gave each rank where the config left it open: settings of `cluster`, by name."""

    @property
    def old(self) -> Group: ...

    @property
    def new(self) -> Group: ...

    @property
    def everyone(self) -> Group: ...

    @property
    def paired(self) -> bool:
        """Whether old and new are two groups side by side."""
        ...
