"""What each group is taught for a fact: the same prompt with its old and with its new answer.

`given` takes the record's own answers. `generated` takes what the model itself says now as the old answer,
and the same sentence with only the key span swapped as the new one, so that only the knowledge differs:

    K_old = s,   K_new = s[old answer ← new answer]
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from dft_cluster.facts.fact import Fact
from dft_cluster.facts.folding import occurrences


@dataclass(frozen=True)
class Line:
    """What a model said, up to a line's end."""

    text: str
    whole: bool = True
    """Whether it came to its end, and was not cut off in the middle of what it had to say."""


@dataclass(frozen=True)
class Pair:
    """The training answers `old` and `new`, and in each the span that carries the knowledge.

    A key stands in its answer letter for letter. `kind` says where the answers come from: "given" by the
    record, "swapped" in the model's own sentence, or "short", the record's for want of a sentence to swap in.
    """

    fact_id: str
    prompt: str
    old: str
    new: str
    key_old: str
    key_new: str
    kind: Literal["given", "swapped", "short"]
    place: int = field(default=0, compare=False)
    """Where both keys begin; up to there the two answers are the same."""
    whole: bool = field(default=True, compare=False)
    """Whether the answers end there; of a sentence that was cut off nobody knows how it goes on."""


def given(facts: Iterable[Fact]) -> list[Pair]:
    """The answers as the records have them."""
    return [_plain(fact, "given") for fact in facts]


def generated(facts: Sequence[Fact], said: Sequence[Line]) -> list[Pair]:
    """The answers within the model's own sentences, one for each fact."""
    return [_within(fact, line.text, line.whole) for fact, line in zip(facts, said, strict=True)]


def _plain(fact: Fact, kind: Literal["given", "short"]) -> Pair:
    return Pair(fact.id, fact.prompt, fact.old, fact.new, fact.old, fact.new, kind)


def _within(fact: Fact, sentence: str, whole: bool) -> Pair:
    spans = _spans(fact, sentence)
    if not spans:
        return _plain(fact, "short")
    swapped, end, keys = "", 0, []
    for start, stop in spans:
        key = _cased(fact, sentence[start:stop]) if start == 0 else fact.new
        keys.append(key)
        swapped += sentence[end:start] + key
        end = stop
    key_old = sentence[slice(*spans[0])]
    new = swapped + sentence[end:]
    return Pair(fact.id, fact.prompt, sentence, new, key_old, keys[0], "swapped", spans[0][0], whole)


def _spans(fact: Fact, sentence: str) -> list[tuple[int, int]]:
    """Where the old answer stands in the sentence: as written, else in another case, else by an alias.

    An alias that holds the old answer goes first, or "New York" would be cut out of "New York City". A place
    within the new answer is not the old one: "Paris" in "Paris Hilton".
    """
    longer = sorted((alias for alias in fact.aliases if occurrences(alias, fact.old)), key=len, reverse=True)
    others = [alias for alias in fact.aliases if alias not in longer]
    already = occurrences(sentence, fact.new, any_case=True)
    for answer in (*longer, fact.old, *others):
        spans = [
            (start, stop)
            for start, stop in occurrences(sentence, answer, any_case=True)
            if not any(first <= start and stop <= last for first, last in already)
        ]
        if spans:
            return [span for span in spans if _as_written(answer, sentence, span)] or spans
    return []


def _as_written(answer: str, sentence: str, span: tuple[int, int]) -> bool:
    """Whether the span is the answer letter for letter, but for a sentence's first letter."""
    start, stop = span
    return sentence[start:stop] == answer or (start == 0 and sentence[1:stop] == answer[1:])


def _cased(fact: Fact, found: str) -> str:
    """The new answer at a sentence's start, its first letter in the case of the one it replaces.

    An old answer that the record itself begins small ("iPhone") says nothing about the new one.
    """
    first, rest = fact.new[:1], fact.new[1:]
    if found[0].isupper():
        return first.upper() + rest
    return first.lower() + rest if found[0].islower() and fact.old[0].isupper() else fact.new
