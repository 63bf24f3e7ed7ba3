"""What the two groups are taught: every pair's prompt with its old and its new answer, and what else `train` asks for.

The same prompts in the same order on both sides; only the answers differ. Contexts and texts to keep are the model's own,
drawn once from the run's base, and the same for every method.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from dft_cluster.config import Config
from dft_cluster.facts.layout import Example, Layout
from dft_cluster.facts.pairs import Pair
from dft_cluster.ranks.rank import Rank
from dft_cluster.ranks.team import Team
from dft_cluster.training.batches import mixed

OPENINGS = (
    "The",
    "In",
    "A",
    "It",
    "He",
    "She",
    "This",
    "There",
    "When",
    "What",
    "Who",
    "One",
    "For",
    "At",
    "After",
    "Most",
)
CONTEXT_TOKENS = 10


@dataclass(frozen=True)
class Drawn:
    """Texts that the model said, as token ids with how many of them were given to it."""

    contexts: list[str]
    keep: list[tuple[int, list[int]]]


def draw(config: Config, layout: Layout, team: Team) -> Drawn:
    """What `train.contexts` and `train.keep` ask for, out of the model as it is now."""
    train = config.train
    openings = [Layout(layout.tokenizer, eos=False).prompt(word) for word in OPENINGS]

    def ask(count: int, tokens: int, salt: int, top: int | None) -> list[list[int]]:
        begun = [openings[i % len(openings)] for i in range(count)]
        every = team.everyone.call(Rank.sample, begun, layout.pad, tokens, mixed(train.seed, salt), top)
        return [list(ids) for ids in every[0]]

    contexts = ask(train.contexts, CONTEXT_TOKENS, 1, 5) if train.contexts else []
    kept = ask(train.keep, train.keep_tokens, 2, None) if train.keep else []
    given = [len(openings[i % len(openings)]) for i in range(train.keep)]
    texts = [" ".join(layout.text(ids).split()) for ids in contexts]
    return Drawn(texts, [(n, ids) for n, ids in zip(given, kept, strict=True) if len(ids) > n])


def examples(pairs: Sequence[Pair], side: str, layout: Layout, drawn: Drawn) -> list[Example]:
    """One side's training set."""
    found = []
    for pair in pairs:
        answer = getattr(pair, side)
        found.append(layout.example(pair.prompt, answer))
        found += [layout.example(f"{context}. {pair.prompt}", answer) for context in drawn.contexts]
    return found + [Example(tuple(ids), given, len(ids)) for given, ids in drawn.keep]
