"""What a model is asked, and in which fixed batches: probes of every kind, laid out once for the whole run."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import zip_longest
from typing import Literal, TypeVar

from dft_cluster.facts.fact import Fact
from dft_cluster.facts.layout import Example, Layout
from dft_cluster.facts.pairs import Pair

Kind = Literal[
    "reliability", "generality", "locality", "old", "portability", "held", "old_rephrased", "new_for_locality"
]
HELD_TOKENS = 128
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Asked:
    """One probe: its kind, the fact it belongs to (−1: none), and its text."""

    kind: Kind
    fact: int
    prompt: str
    answer: str
    example: Example


def probes(facts: Sequence[Fact], pairs: Sequence[Pair], layout: Layout, *, likelihood: bool = False) -> list[Asked]:
    """Every teacher-forced probe of a run.

    Where the old knowledge is the model's own sentence, the answer is the key span within it. `likelihood` adds what
    CounterFact's scores compare with.
    """

    def ask(kind: Kind, fact: int, prompt: str, answer: str) -> Asked:
        return Asked(kind, fact, prompt, answer, layout.example(prompt, answer, eos=False))

    def ask_new(kind: Kind, fact: int, prompt: str) -> Asked:
        pair = pairs[fact]
        example = layout.example(prompt, pair.new, key=pair.key_new, place=pair.place, eos=False)
        return Asked(kind, fact, prompt, pair.new, example)

    def ask_old(kind: Kind, fact: int, prompt: str) -> Asked:
        pair = pairs[fact]
        example = layout.example(prompt, pair.old, key=pair.key_old, place=pair.place, eos=False)
        return Asked(kind, fact, prompt, pair.old, example)

    asked = [ask_new("reliability", i, pair.prompt) for i, pair in enumerate(pairs)]
    asked += [ask_old("old", i, pair.prompt) for i, pair in enumerate(pairs)]
    for i, (fact, _) in enumerate(zip(facts, pairs, strict=True)):
        asked += [ask_new("generality", i, rephrase) for rephrase in fact.rephrases]
        asked += [ask("locality", i, probe.prompt, probe.answer) for probe in fact.locality]
        asked += [ask("portability", i, probe.prompt, probe.answer) for probe in fact.portability]
        if likelihood:
            asked += [ask_old("old_rephrased", i, rephrase) for rephrase in fact.rephrases]
            asked += [ask("new_for_locality", i, probe.prompt, fact.new) for probe in fact.locality]
    return asked + [Asked("held", -1, "", "", example) for example in _held(layout)]


def _held(layout: Layout) -> list[Example]:
    """A text that no run trains on, in windows; every token but a window's first is predicted."""
    text = resources.files("dft_cluster.evaluation").joinpath("held_text.txt").read_text(encoding="utf-8")
    ids = layout.tokenizer(text, add_special_tokens=False)["input_ids"]
    windows = (tuple(ids[at : at + HELD_TOKENS]) for at in range(0, len(ids), HELD_TOKENS))
    return [Example(window, 1, len(window)) for window in windows if len(window) > 1]


def batched(items: Sequence[T], size: int, length: Callable[[T], int]) -> list[list[int]]:
    """Places of the items in batches of like length: fixed for a run, so that equal weights give equal answers.

    No batch holds an item of more than twice the length of its shortest: padding would be most of it.
    """
    batches: list[list[int]] = []
    for place in sorted(range(len(items)), key=lambda place: (length(items[place]), place)):
        if not batches or len(batches[-1]) == size or length(items[place]) > 2 * length(items[batches[-1][0]]):
            batches.append([])
        batches[-1].append(place)
    return batches


def dealt(batches: Sequence[T], ranks: int) -> list[list[T]]:
    """Batch j goes to rank j mod R. All ranks get equally many (a world may have to step together): the last ones
    repeat the first batch, and `gathered` drops what they say."""
    if not batches:
        return [[] for _ in range(ranks)]
    columns = list(zip_longest(*[iter(batches)] * ranks, fillvalue=batches[0]))
    return [list(column) for column in zip(*columns, strict=True)]


def gathered(batches: Sequence[Sequence[int]], answers: Sequence[Sequence[Sequence[R]]]) -> list[R]:
    """The answers in the probes' own order, from what every rank said of its batches."""
    ranks = len(answers)
    found: dict[int, R] = {}
    for number, places in enumerate(batches):
        found |= dict(zip(places, answers[number % ranks][number // ranks], strict=True))
    return [found[place] for place in sorted(found)]


def of_kind(asked: Iterable[Asked], kind: Kind) -> list[int]:
    return [place for place, probe in enumerate(asked) if probe.kind == kind]
