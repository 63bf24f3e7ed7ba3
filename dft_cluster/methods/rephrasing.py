"""The training prompts in other words, as the model itself finds them.

Shown three examples, the model goes on with a line for each prompt, `DRAWN` times as often as is wanted. Of the lines that
could be the same prompt in other words, those are taken after which the old answer is likeliest: the model is its own judge of
whether a line asks for what the prompt asks for. A prompt for which too few lines pass is trained with fewer.
"""

from collections.abc import Sequence

from dft_cluster.config import Config
from dft_cluster.facts.fact import Fact
from dft_cluster.facts.folding import contains, fold
from dft_cluster.facts.layout import Layout
from dft_cluster.facts.pairs import Pair
from dft_cluster.methods import asking
from dft_cluster.ranks.rank import Rank
from dft_cluster.ranks.team import Team

QUESTIONS = (
    ("Which language does Marie Laval speak at home?", "What is the home language of Marie Laval?"),
    ("In what year did the Harbour Club come to an end?", "When was the Harbour Club dissolved?"),
    ("Who was the mother of Edmund Crewe?", "What was the name of Edmund Crewe's mother?"),
)
BEGINNINGS = (
    ("The home town of Marie Laval is", "Marie Laval comes from the town of"),
    ("Edmund Crewe plays the instrument", "The instrument that Edmund Crewe plays is the"),
    ("The Harbour Club has its seat in", "The seat of the Harbour Club is in"),
)
DRAWN = 4
TOKENS = 24
AMONG = 10
"""How many of the likeliest tokens each is drawn from."""


def rephrase(
    config: Config, layout: Layout, team: Team, facts: Sequence[Fact], pairs: Sequence[Pair], seed: int
) -> list[list[str]]:
    """For each pair at most `train.rephrases` other wordings of its prompt."""
    wanted = config.train.rephrases
    plain = Layout(layout.tokenizer, eos=False)
    begun = [plain.prompt(_shown(pair.prompt)) for pair in pairs for _ in range(DRAWN * wanted)]
    every = team.everyone.call(Rank.sample, begun, layout.pad, TOKENS, seed, AMONG, config.evaluate.batch)
    lines = [
        layout.text(ids[len(start) :]).partition("\n")[0].strip() for start, ids in zip(begun, every[0], strict=True)
    ]

    passed: list[tuple[int, str]] = []
    for number, (fact, pair) in enumerate(zip(facts, pairs, strict=True)):
        drawn = lines[number * DRAWN * wanted : (number + 1) * DRAWN * wanted]
        passed += [(number, line) for line in dict.fromkeys(drawn) if could_ask(line, fact, pair)]
    answers = [layout.example(line, pairs[number].old, eos=False) for number, line in passed]
    said = asking.forced(team, answers, config.evaluate.batch, layout.pad)
    ranked = sorted(zip(passed, said, strict=True), key=lambda one: one[1].nll)
    return [[line for (owner, line), _ in ranked if owner == number][:wanted] for number in range(len(pairs))]


def could_ask(line: str, fact: Fact, pair: Pair) -> bool:
    """A line about the subject, in the form of the prompt, that is another one, no probe (one that was trained on would measure
    nothing), and gives no answer away."""
    return (
        fold(line) not in {"", *map(fold, fact.prompts)}
        and (not fact.subject or fact.subject not in pair.prompt or fact.subject in line)
        and line.endswith("?") == pair.prompt.rstrip().endswith("?")
        and not line.endswith((".", "!"))
        and not any(contains(line, key) and not contains(pair.prompt, key) for key in (pair.key_old, pair.key_new))
    )


def _shown(prompt: str) -> str:
    examples = QUESTIONS if prompt.rstrip().endswith("?") else BEGINNINGS
    shown = "".join(f"Text: {one}\nThe same in other words: {other}\n\n" for one, other in examples)
    return f"{shown}Text: {prompt}\nThe same in other words:"
