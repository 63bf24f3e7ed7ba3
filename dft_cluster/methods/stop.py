"""When a run ends, and which round it ends with: functions of what was measured and nothing else."""

from collections.abc import Sequence
from typing import Any

from dft_cluster.config import Config

Line = dict[str, Any]


def reached(line: Line, config: Config) -> bool:
    """Whether a measured round has the reliability asked for."""
    target = config.converge.reliability
    return target != "off" and "reliability" in line and line["reliability"][config.converge.on] >= target


def stop_reason(rounds: Sequence[Line], config: Config) -> str | None:
    """Why no further round is done, or None to go on. `rounds` begins with round 0."""
    converge = config.converge
    measured = [line for line in rounds if "reliability" in line]
    done = rounds[-1]["round"]
    last = measured[-1]
    if last["round"] == done and reached(last, config):
        value = last["reliability"][converge.on]
        return f"reliability ({converge.on}) {value:.1f} reached {converge.reliability:g} in round {done}"
    if done >= config.method.rounds:
        return f"method.rounds={config.method.rounds} done"
    if converge.patience != "off" and last["round"] == done and len(measured) > converge.patience:
        values = [line["reliability"][converge.on] for line in measured]
        earlier, recent = max(values[: -converge.patience]), max(values[-converge.patience :])
        if recent < earlier + converge.min_gain:
            return (
                f"no gain: {converge.patience} rounds in a row added less than {converge.min_gain:g} points to reliability "
                f"({converge.on}) {earlier:.1f}"
            )
    return None


def kept_round(rounds: Sequence[Line], config: Config) -> int:
    """The round whose θ the run ends with: the best by reliability, then locality (the earliest of equals), the last, or the
    one that was asked for."""
    on, keep, last = config.converge.on, config.converge.keep, int(rounds[-1]["round"])
    measured = [line for line in rounds if "reliability" in line and line["round"] > 0]
    if isinstance(keep, int):
        return min(keep, last)
    if keep == "last" or not measured:
        return last
    best = max(
        measured, key=lambda line: (line["reliability"][on], line.get("locality", {}).get(on, 0.0), -line["round"])
    )
    return int(best["round"])
