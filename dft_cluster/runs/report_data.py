"""What one run left behind, as the report reads it."""

from dataclasses import dataclass
from typing import Any, Self

from dft_cluster.runs.formats import finite

Json = dict[str, Any]


@dataclass(frozen=True)
class RunData:
    """A run directory's lines: its config record, its rounds in order, its end, samples of its facts.

    `end` is empty while the run goes on.
    """

    record: Json
    rounds: tuple[Json, ...]
    end: Json
    answers: tuple[Json, ...] = ()
    pairs: tuple[Json, ...] = ()

    @classmethod
    def from_texts(cls, config: Json, metrics: list[Json], answers: list[Json], pairs: list[Json]) -> Self:
        """From the parsed lines. Where a round was run twice (killed, then resumed), its later line counts.

        A stop followed by more rounds (the run was asked to go on) is no longer the end.
        """
        rounds = {line["round"]: line for line in metrics if "round" in line}
        end = metrics[-1] if metrics and "round" not in metrics[-1] else {}
        ordered = tuple(rounds[index] for index in sorted(rounds))
        return cls(config, ordered, end, tuple(answers), tuple(pairs))

    def setting(self, key: str, default: Any = None) -> Any:
        """The resolved config's value under a dotted key."""
        return look_up(self.record.get("config") or {}, key, default)

    @property
    def before(self) -> Json:
        """The line of the model as it came: round 0."""
        return self.rounds[0] if self.rounds and self.rounds[0]["round"] == 0 else {}

    @property
    def kept(self) -> Json:
        """The line of the round whose weights the run kept: the best one, or by config the last or the one asked for."""
        best = self.end.get("best_round") if self.setting("converge.keep") != "last" else None
        return next((line for line in self.rounds if line["round"] == best), self.rounds[-1] if self.rounds else {})

    @property
    def after(self) -> Json:
        """The figures that the run ends with: of the exported model where that was measured."""
        return self.end.get("final") or self.kept

    @property
    def landed(self) -> tuple[Json, ...]:
        """The rounds whose core is part of the result."""
        last = self.kept.get("round", 0)
        return tuple(line for line in self.rounds if line.get("core") and line["round"] <= last)


def look_up(tree: Any, key: str, default: Any = None) -> Any:
    """The value under a dotted key in nested dicts, or `default` where a part of the way is missing."""
    for part in key.split("."):
        if not isinstance(tree, dict) or part not in tree:
            return default
        tree = tree[part]
    return default if tree is None else tree


def side_by_side(line: Json) -> bool:
    """Whether old and new were trained at the same time, by two groups."""
    return any(rank.startswith("old-") for rank in line.get("memory") or {})


def wall(line: Json) -> float:
    """Seconds of a round's phases, of which old and new may have been at the same time."""
    spent = {phase: figure(line, f"seconds.{phase}") or 0.0 for phase in line.get("seconds") or {}}
    sides = [spent.pop(side) for side in ("old", "new") if side in spent]
    return (max if side_by_side(line) else sum)(sides or [0.0]) + sum(spent.values())


def figure(line: Json, key: str) -> float | None:
    """The finite number under a dotted key, or None."""
    return finite(look_up(line, key))
