"""Which facts a run can take: what teaches nothing or contradicts itself is left out, and reported."""

import random
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from dft_cluster.errors import InputError
from dft_cluster.facts.fact import Fact
from dft_cluster.facts.folding import plain

REASONS = ("changes nothing", "repeats", "contradicts")


@dataclass(frozen=True)
class Cleaned:
    """The facts that stay, in their order, and those left out, by reason."""

    facts: list[Fact]
    left_out: dict[str, list[Fact]]

    def report(self) -> str:
        """One line for each reason that left facts out, with its count and the first three; "" for none."""
        total = len(self.facts) + sum(map(len, self.left_out.values()))
        lines = []
        for reason, facts in self.left_out.items():
            examples = [f"[{fact.id}] {fact.prompt!r}: {fact.old!r} → {fact.new!r}" for fact in facts[:3]]
            more = ["…"] if len(facts) > 3 else []
            lines.append(f"{len(facts)} of {total} facts left out ({reason}): {'; '.join(examples + more)}")
        return "\n".join(lines)


def clean(facts: Iterable[Fact]) -> Cleaned:
    """The facts without those that cannot be taught together; case and whitespace never make a difference.

    "changes nothing": the new answer is the old one. "repeats": an earlier fact has the same prompt and the
    same new answer (whatever its old one: a prompt is taught one old answer, the first). "contradicts": the
    same prompt with different new answers; all of these go, for no model can give both, and to keep one of
    them would be to guess which the user means.
    """
    left_out: dict[str, list[Fact]] = {reason: [] for reason in REASONS}
    changing = []
    answers: defaultdict[str, set[str]] = defaultdict(set)
    for fact in facts:
        if plain(fact.old) == plain(fact.new):
            left_out["changes nothing"].append(fact)
        else:
            changing.append(fact)
            answers[plain(fact.prompt)].add(plain(fact.new))
    kept: list[Fact] = []
    asked: set[str] = set()
    for fact in changing:
        prompt = plain(fact.prompt)
        if len(answers[prompt]) > 1:
            left_out["contradicts"].append(fact)
        elif prompt in asked:
            left_out["repeats"].append(fact)
        else:
            asked.add(prompt)
            kept.append(fact)
    return Cleaned(kept, {reason: facts for reason, facts in left_out.items() if facts})


def choose(facts: list[Fact], limit: int | None, seed: int | None = None) -> tuple[list[Fact], list[str]]:
    """The first `limit` facts, or with a seed a sample of as many, in the file's order either way; and notes.

    None takes all of them, and so does a limit beyond what there is, with a note.
    """
    if not facts:
        raise InputError("no facts are left to change")
    if limit is None:
        return list(facts), []
    if limit < 1:
        raise InputError(f"the limit on facts is {limit}; it must be at least 1, or none to take all")
    if limit > len(facts):
        return list(facts), [f"the limit is {limit}, but there are only {len(facts)} facts; all are taken"]
    if seed is None:
        return facts[:limit], []
    places = sorted(random.Random(seed).sample(range(len(facts)), limit))
    return [facts[place] for place in places], []
