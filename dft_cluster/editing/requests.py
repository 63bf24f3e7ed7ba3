"""A fact as ROME and MEMIT see it: its prompt behind several prefixes, with the place where the subject ends."""

from collections.abc import Sequence
from dataclasses import dataclass

from dft_cluster.editing.subjects import last_token
from dft_cluster.facts.fact import Fact
from dft_cluster.facts.layout import Layout


@dataclass(frozen=True)
class Row:
    """One text: its tokens, the place `at` of the subject's last token, and where the answer begins (its end: no answer)."""

    ids: tuple[int, ...]
    at: int
    start: int

    @property
    def answer(self) -> tuple[int, ...]:
        return self.ids[self.start :]

    @property
    def subject(self) -> "Row":
        """The text up to the subject's end: all that the states there depend on."""
        return Row(self.ids[: self.at + 1], self.at, self.at + 1)


@dataclass(frozen=True)
class Request:
    """What to teach: the prompt with its new answer, bare first and then behind each prefix, and the essence prompt."""

    rows: tuple[Row, ...]
    essence: Row

    @property
    def later(self) -> int:
        """Tokens from the subject's last on: what an optimisation step computes for each text."""
        return max(len(row.ids) - row.at for row in (*self.rows, self.essence))


def request(layout: Layout, fact: Fact, prefixes: Sequence[str]) -> Request:
    """The essence prompt, "{subject} is a", shows what the subject is at all; its answer must not change."""
    bare = Layout(layout.tokenizer, "plain", eos=False)
    essence = f"{fact.subject.strip()} is a"
    ids = bare.prompt(essence)
    rows = tuple(_row(layout, fact, prompt) for prompt in prompts(fact, prefixes))
    return Request(rows, Row(ids, last_token(bare, essence, fact.subject), len(ids)))


def prompts(fact: Fact, prefixes: Sequence[str]) -> list[str]:
    return [fact.prompt, *(f"{prefix}. {fact.prompt}" for prefix in prefixes)]


def subjects(layout: Layout, fact: Fact, prefixes: Sequence[str]) -> list[Row]:
    """The fact's prompts up to the subject's end."""
    return [_row(layout, fact, prompt).subject for prompt in prompts(fact, prefixes)]


def _row(layout: Layout, fact: Fact, prompt: str) -> Row:
    example = layout.example(prompt, fact.new, eos=False)
    return Row(example.ids, last_token(layout, prompt, fact.subject), example.start)
