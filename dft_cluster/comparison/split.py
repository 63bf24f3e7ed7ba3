"""Which facts are reported and which may be used to choose settings: never the same, nor about the same."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from dft_cluster.comparison.settings import ReportSettings, SearchSettings
from dft_cluster.errors import InputError
from dft_cluster.facts.cleaning import choose
from dft_cluster.facts.fact import Fact
from dft_cluster.facts.folding import plain


@dataclass(frozen=True)
class Split:
    """The facts of one data set, parted; `notes` say what was left out and why."""

    reported: list[Fact]
    development: list[Fact]
    notes: list[str]


def split(
    facts: Sequence[Fact],
    report: ReportSettings,
    search: SearchSettings | None = None,
    elsewhere: Sequence[Fact] = (),
) -> Split:
    """The reported facts: the first `report.facts` with the probes asked for, or a seeded sample of them.

    Development facts are drawn from those left over, without any that is taught or rephrased by a prompt of a reported one, here
    or in another data set (`elsewhere`), or shares its subject; and without such of their probes as a reported one is asked,
    too. So what is asked of the reported facts has no part in a choice.
    """
    rich = [fact for fact in facts if len(fact.rephrases) >= report.rephrases and len(fact.locality) >= report.locality]
    notes = []
    if len(rich) < len(facts):
        notes.append(
            f"{len(facts) - len(rich)} of {len(facts)} facts left out: fewer than {report.rephrases} rephrases or "
            f"{report.locality} locality probes"
        )
    if not rich:
        raise InputError("; ".join(["report: no facts are left to report", *notes]))
    reported, more = choose(rich, report.facts, report.seed)
    notes += more
    if search is None:
        return Split(reported, [], notes)
    taken = {fact.id for fact in reported}
    shown = [*reported, *elsewhere]
    prompts = {prompt for fact in shown for prompt in _asked(fact)}
    subjects = {plain(fact.subject) for fact in shown if fact.subject}
    left = [fact for fact in rich if fact.id not in taken]
    apart = [fact for fact in left if not _shares(fact, prompts, subjects)]
    if not apart:
        raise InputError(
            f"search: no development facts are left: {len(reported)} of {len(rich)} facts are reported and "
            f"{len(left)} others share a prompt or a subject with them; right would be a smaller report.facts, or more data"
        )
    drawn = random.Random(search.seed).sample(apart, min(search.facts, len(apart)))
    development = [_without(fact, prompts) for fact in drawn]
    if len(left) > len(apart):
        notes.append(
            f"{len(left) - len(apart)} facts are kept from the search: they share a prompt or a subject with reported ones"
        )
    if len(drawn) < search.facts:
        notes.append(f"the search has {len(drawn)} development facts where {search.facts} were asked for")
    if lost := sum(map(_probes, drawn)) - sum(map(_probes, development)):
        notes.append(f"{lost} probes are kept from the search: reported facts are asked them, too")
    return Split(reported, development, notes)


def _asked(fact: Fact) -> Iterator[str]:
    """Everything that is asked of a fact."""
    probes = (probe.prompt for probe in (*fact.locality, *fact.portability))
    yield from map(plain, (fact.prompt, *fact.rephrases, *probes))


def _shares(fact: Fact, prompts: set[str], subjects: set[str]) -> bool:
    asked = any(plain(prompt) in prompts for prompt in (fact.prompt, *fact.rephrases))
    return asked or (bool(fact.subject) and plain(fact.subject) in subjects)


def _without(fact: Fact, prompts: set[str]) -> Fact:
    """A fact without the probes that are among these prompts."""
    locality, portability = (
        tuple(probe for probe in probes if plain(probe.prompt) not in prompts)
        for probes in (fact.locality, fact.portability)
    )
    return replace(fact, locality=locality, portability=portability)


def _probes(fact: Fact) -> int:
    return len(fact.locality) + len(fact.portability)
