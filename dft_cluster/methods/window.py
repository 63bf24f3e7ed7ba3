"""Whether all that is taught and asked fits into the model's window.

Beyond it a model with learned positions fails in the middle of a batch, and one with rotary positions answers as it was never
trained to.
"""

from collections.abc import Iterator, Sequence

from dft_cluster.config import Config
from dft_cluster.errors import InputError
from dft_cluster.facts.fact import Fact
from dft_cluster.facts.layout import Layout

CONTEXT_TOKENS = 10
"""Of a text that stands before a prompt (`train.contexts`)."""
CONTEXT_ROOM = CONTEXT_TOKENS + 2
"""With an opening word before it and a full stop behind it."""


def refuse_too_long(config: Config, facts: Sequence[Fact], layout: Layout, window: int | None) -> None:
    """`window`: the tokens that the model can see; None where nothing bounds them."""
    if window is None:
        return
    around = len(layout.prompt("a")) + 2
    found: dict[tuple[str, str], int] = {}
    for fact, prompt, answer, more in _texts(config, facts):
        # Of a text no more tokens are made than it has bytes: few need a closer look.
        if around + len(prompt.encode()) + len(answer.encode()) + more > window:
            tokens = len(layout.example(prompt, answer, eos=True).ids) + more
            if tokens > window:
                found.setdefault((fact.id, prompt), tokens)
    if found:
        (name, prompt), tokens = next(iter(found.items()))
        raise InputError(
            f"facts: {len(found)} prompt{'s'[: len(found) > 1]} with the answers are longer than the model's window of {window} "
            f"tokens; the first is fact {name}'s {prompt[:40]!r}… with {tokens}. Right would be shorter ones, or the facts "
            "without them"
        )


def _texts(config: Config, facts: Sequence[Fact]) -> Iterator[tuple[Fact, str, str, int]]:
    """Every prompt with every answer it stands before, and the tokens that may come besides."""
    room = CONTEXT_ROOM if config.train.contexts else 0
    spoken = config.evaluate.max_new_tokens if "generated" in config.evaluate.protocols else 0
    for fact in facts:
        for answer in (fact.old, fact.new):
            yield fact, fact.prompt, answer, max(room, spoken)
            yield from ((fact, rephrase, answer, spoken) for rephrase in fact.rephrases)
        for probe in (*fact.locality, *fact.portability):
            yield fact, probe.prompt, probe.answer, spoken
