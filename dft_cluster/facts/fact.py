"""What should change: one fact, with the questions that show whether it did and what must stay."""

from dataclasses import dataclass


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
