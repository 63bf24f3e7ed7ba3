"""What should change: one fact, with the questions that show whether it did and what must stay."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Probe:
    """A question and the answer it should get."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Fact:
    """One piece of knowledge: the same prompt, its old answer and its new one.

    `rephrases` ask for the same thing in other words (they measure generality), `locality` asks for what
    must not change, `portability` for what follows from the new answer, `aliases` are other
    spellings of the old answer.
    """

    id: str
    prompt: str
    old: str
    new: str
    subject: str = ""
    rephrases: tuple[str, ...] = ()
    locality: tuple[Probe, ...] = ()
    portability: tuple[Probe, ...] = ()
    aliases: tuple[str, ...] = ()

    @property
    def prompts(self) -> list[str]:
        """All that is asked of it: its own prompt, and those of its probes."""
        return [self.prompt, *self.rephrases, *(probe.prompt for probe in (*self.locality, *self.portability))]


def fingerprint_of(facts: Sequence[Fact]) -> str:
    """What tells one list of facts from another: content and order."""
    return hashlib.sha256(json.dumps([asdict(fact) for fact in facts], ensure_ascii=False).encode()).hexdigest()
