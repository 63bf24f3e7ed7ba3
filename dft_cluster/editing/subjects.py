"""Where in a prompt's tokens its subject ends: the place at which ROME and MEMIT read and write."""

import re
from collections.abc import Sequence

from dft_cluster.errors import InputError
from dft_cluster.facts.fact import Fact
from dft_cluster.facts.layout import ALPACA, Layout


def refuse_without_subject(facts: Sequence[Fact]) -> None:
    """Every fact needs a subject that stands in its prompt."""
    problems = []
    if missing := [fact.id for fact in facts if not fact.subject.strip()]:
        problems.append(
            f"rome and memit need a subject; {len(missing)} of {len(facts)} facts have none: {_named(missing)}"
        )
    absent = [f for f in facts if f.subject.strip() and end_in(f.prompt, f.subject) is None]
    if absent:
        problems.append(
            f"rome and memit need the subject in the prompt; in {len(absent)} of {len(facts)} facts it is not: "
            f"{_named([f.id for f in absent])} ({absent[0].subject!r} is not in {absent[0].prompt!r})"
        )
    if problems:
        raise InputError("\n".join(f"facts: {problem}" for problem in problems))


def _named(ids: Sequence[str]) -> str:
    return f"{', '.join(ids[:10])}{f' and {len(ids) - 10} more' if ids[10:] else ''}"


def end_in(prompt: str, subject: str) -> int | None:
    """Where the last occurrence of the subject ends: as it is written, else in whatever case."""
    subject = subject.strip()
    if (place := prompt.rfind(subject)) >= 0:
        return place + len(subject)
    found = list(re.finditer(f"(?=({re.escape(subject)}))", prompt, re.IGNORECASE))
    return found[-1].end(1) if found else None


def last_token(layout: Layout, prompt: str, subject: str) -> int:
    """The place among `layout.prompt(prompt)` of the token that ends the subject (it may hold what follows, too)."""
    return span(layout, prompt, subject)[1]


def span(layout: Layout, prompt: str, subject: str) -> tuple[int, int]:
    """The first and the last token that carry the subject."""
    end = end_in(prompt, subject)
    if end is None:
        raise InputError(f"the subject {subject!r} is not in the prompt {prompt!r}")
    ids = layout.prompt(prompt)
    text, before = _written(layout, prompt)
    bare = prompt.strip()  # a chat template may trim the prompt
    if (place := text.rfind(bare)) < 0:
        raise InputError(f"train.template: {layout.template} does not carry the prompt {prompt!r} as it is")
    end += place - (len(prompt) - len(prompt.lstrip()))
    start = end - len(subject.strip())
    within = _by_offsets(layout, text, start, end) if getattr(layout.tokenizer, "is_fast", False) else None
    first, last = within or _by_decoding(layout, ids[before:], text[:start], text[:end])
    return before + first, before + last


def _written(layout: Layout, prompt: str) -> tuple[str, int]:
    """The text that `layout.prompt` cuts into tokens, and how many tokens it puts before."""
    if layout.template == "chat":
        return layout.chat(prompt), 0
    text = ALPACA.format(prompt=prompt) if layout.template == "alpaca" else prompt
    inside = len(layout.tokenizer(text, add_special_tokens=False)["input_ids"])
    return text, len(layout.prompt(prompt)) - inside


def _by_offsets(layout: Layout, text: str, start: int, end: int) -> tuple[int, int] | None:
    """The tokens with characters between the two places."""
    offsets = layout.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    within = [token for token, (begin, stop) in enumerate(offsets) if begin < end and stop > start and stop > begin]
    return (within[0], within[-1]) if within else None


def _by_decoding(layout: Layout, ids: Sequence[int], before: str, upto: str) -> tuple[int, int]:
    """The tokens at which the decoded text outgrows what stands before the subject, and reaches its end. Spaces do
    not count: tokenizers put them where they like."""

    def letters(text: str) -> int:
        return len(re.sub(r"\s|\ufffd", "", text))

    def decoded(tokens: Sequence[int]) -> str:
        return str(layout.tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False))

    said = [letters(decoded(ids[: n + 1])) for n in range(len(ids))]
    goal = letters(before)
    reached = next((n for n, count in enumerate(said) if count >= goal), len(ids) - 1) if goal else -1
    later = (n for n in range(reached + 1, len(ids)) if decoded(ids[n : n + 1]).strip())
    first = reached if goal and said[reached] > goal else next(later, len(ids) - 1)
    return first, next((n for n, count in enumerate(said) if count >= letters(upto)), len(ids) - 1)
