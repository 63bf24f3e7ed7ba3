"""The same budget for every method: successive halving over its own hyper-parameters, on development facts alone.

Every method may try `trials` settings and spend `device_seconds`. All settings begin on a few development facts; the
best third of them goes on to three times as many, until at most three are compared on all of them (Jamieson and
Talwalkar 2016, with a share that ends by time as well). How many rounds a method takes is chosen by the same rule, from
what a trial measured after each of its rounds. The reported facts are no argument of anything here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from dft_cluster.comparison.settings import SearchSettings, Setting, settings_to_try
from dft_cluster.comparison.statistics import harmonic
from dft_cluster.errors import InputError
from dft_cluster.facts.fact import Fact
from dft_cluster.methods.job import RunFailedError

Measured = dict[int, dict[str, float]]
"""By round: reliability, generality, locality (token)."""
KEEP = 3  # one of so many goes on to the next rung
TRIES = 3  # of one trial, before a search goes on without it


@dataclass
class Trial:
    """One setting on one number of development facts."""

    number: int
    setting: Setting
    facts: int
    device_seconds: float
    token: dict[str, float] = field(default_factory=dict)
    """Reliability, generality, locality after its best round; nothing where it failed."""
    round: int | None = None
    """The best of its rounds, by the rule."""
    reason: str = ""
    """Why it failed."""
    passing: bool = False
    """Whether that may have had to do with the machines, and not with the setting."""
    tries: int = 1
    """How many starts made it."""


@dataclass
class Search:
    """The search of one method for one model and data set, as far as it got."""

    trials: list[Trial] = field(default_factory=list)
    chosen: Setting | None = None
    """None where every setting was refused: the method is run as it is configured."""
    ended: str = ""
    """Why there is nothing left to try; the method is not run before."""

    @property
    def spent(self) -> float:
        """Of the share. What the machines are to blame for is no part of it."""
        return sum(trial.device_seconds for trial in self.trials if not trial.passing)

    @property
    def sound(self) -> list[Trial]:
        """Those that came to an end."""
        return [trial for trial in self.trials if trial.token]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "device_seconds": self.spent}

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> "Search":
        return cls([Trial(**trial) for trial in tree["trials"]], tree["chosen"], tree["ended"])


Measure = Callable[[int, Setting, Sequence[Fact]], tuple[Measured, float]]
"""Runs trial n's setting on these facts: what its rounds measured, and its device-seconds. A failure carries its own."""


class TrialFailedError(RunFailedError):
    """A trial that came to no end, and what it cost until then."""

    def __init__(self, reason: str, device_seconds: float, passing: bool = False) -> None:
        super().__init__(reason)
        self.device_seconds, self.passing = device_seconds, passing


def rule(search: SearchSettings) -> str:
    """The rule of choice, in words; `better` is the same in figures."""
    return (
        f"Among the rounds of the settings tried on the most development facts: of those with reliability (token) of at least "
        f"{search.reliability:g} % the one with the highest harmonic mean of generality and locality (token); if there is "
        "none, the one with the highest reliability. Of equals the earlier one."
    )


def better(search: SearchSettings, token: Mapping[str, float]) -> tuple[float, ...]:
    """What the rule sorts by, higher is better; a failed trial is below all."""
    if not token:
        return (-1.0,)
    balance = harmonic([token.get("generality"), token.get("locality")])
    enough = token["reliability"] >= search.reliability
    return (1.0, balance) if enough else (0.0, token["reliability"])


def rungs(settings: int, facts: int, most: int | None = None) -> list[tuple[int, int]]:
    """(settings, facts) of every rung: each has a third of the settings and three times the facts of the one before."""
    counts = [settings]
    while counts[-1] > KEEP and len(counts) != most:
        counts.append(-(-counts[-1] // KEEP))
    return [(count, max(1, -(-facts // KEEP ** (len(counts) - 1 - rung)))) for rung, count in enumerate(counts)]


def halve(
    search: SearchSettings,
    values: Mapping[str, Sequence[Any]],
    development: Sequence[Fact],
    measure: Measure,
    found: Search,
    kept: Callable[[], None],
) -> Search:
    """Fills `found`, which may hold trials of an earlier start; `kept` is called after every trial.

    A trial that, at the pace of those before it, would go beyond the share is not begun; the first one always is. At one that
    failed for a reason that may have passed the search stops, for the next start to make it anew; after `TRIES` of them it
    goes on without it. Where nothing but such failures came of any, it has not ended.
    """
    if not development:
        raise InputError("search: there are no development facts; right would be a smaller report.facts, or more data")
    tried = settings_to_try(search, values)
    anew = [t for t in found.trials if t.passing and (t.tries < TRIES or not found.sound)]
    done = {(trial.number, trial.facts): trial for trial in found.trials}
    order = list(range(len(tried)))
    ended = "all rungs done"
    for count, size in rungs(len(tried), len(development), search.rungs):
        order = order[:count]
        for number in order:
            before = done.get((number, size))
            if before is not None and before not in anew:
                continue
            if found.spent and found.spent + _pace(number, found.trials) * size > search.device_seconds:
                ended = f"the share of {search.device_seconds:g} device-seconds is used up"
                break
            trial = _try(search, number, tried[number], development[:size], measure)
            if before is not None:
                found.trials.remove(before)
                trial = replace(trial, tries=before.tries + 1)
            found.trials.append(trial)
            done[number, size] = trial
            kept()
            if trial.passing and trial.tries < TRIES:
                return found
        here = [number for number in order if (number, size) in done and done[number, size].token]
        order = sorted(here, key=lambda number: better(search, done[number, size].token), reverse=True)
        if ended.startswith("the share"):
            break
    if found.sound or not any(trial.passing for trial in found.trials):
        found.chosen, found.ended = choose(search, found.sound), ended
    kept()
    return found


def choose(search: SearchSettings, sound: Sequence[Trial]) -> Setting | None:
    """The setting that the rule takes, and its round to end with; the earliest of equals."""
    if not sound:
        return None
    most = max(trial.facts for trial in sound)
    best = max((t for t in sound if t.facts == most), key=lambda t: (better(search, t.token), -t.number))
    return {**best.setting, "converge.keep": best.round}


def _pace(number: int, trials: Sequence[Trial]) -> float:
    """Device-seconds per fact that this setting took last, or the others on average."""
    counted = [trial for trial in trials if not trial.passing]
    own = [trial for trial in counted if trial.number == number][-1:]
    known = own or counted
    return sum(trial.device_seconds for trial in known) / sum(trial.facts for trial in known)


def _try(search: SearchSettings, number: int, setting: Setting, facts: Sequence[Fact], measure: Measure) -> Trial:
    try:
        measured, seconds = measure(number, setting, facts)
    except TrialFailedError as error:
        return Trial(number, setting, len(facts), error.device_seconds, reason=str(error), passing=error.passing)
    best = max(measured, key=lambda one: (better(search, measured[one]), -one))
    return Trial(number, setting, len(facts), seconds, measured[best], best)
