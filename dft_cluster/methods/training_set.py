"""What the two groups are taught: every pair's prompt with its old and its new answer, and what else `train` asks for.

The same prompts in the same order on both sides; only the answers differ. Rephrases, contexts and texts to keep are the
model's own, drawn once from the run's base, and the same for every method.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dft_cluster.config import Config
from dft_cluster.facts.fact import Fact
from dft_cluster.facts.layout import Example, Layout
from dft_cluster.facts.pairs import Pair, generated, given
from dft_cluster.methods import asking
from dft_cluster.methods.examine import Examiner
from dft_cluster.methods.keeping import prompts_to_keep
from dft_cluster.methods.prepare import Prepared
from dft_cluster.methods.rephrasing import rephrase
from dft_cluster.methods.window import CONTEXT_TOKENS
from dft_cluster.ranks.rank import Rank
from dft_cluster.ranks.team import Team
from dft_cluster.runs.console import Console
from dft_cluster.runs.record import Record
from dft_cluster.training.batches import mixed

OPENINGS = (
    "The", "In", "A", "It", "He", "She", "This", "There", "When", "What", "Who", "One", "For", "At", "After", "Most",
)  # fmt: skip


@dataclass(frozen=True)
class Drawn:
    """What the model said: texts to stand before a prompt, texts to keep (token ids, with how many of them were given to
    it), and for each pair other wordings of its prompt."""

    contexts: Sequence[str] = ()
    keep: Sequence[tuple[int, Sequence[int]]] = ()
    rephrases: Sequence[Sequence[str]] = ()
    seconds: float = 0.0
    """What the drawing took."""

    def wordings(self, number: int, prompt: str) -> list[str]:
        """A pair's prompt with its rephrases, all of them also behind every context."""
        plain = [prompt, *(self.rephrases[number] if self.rephrases else ())]
        return plain + [f"{context}. {wording}" for context in self.contexts for wording in plain]

    def asked(self, pairs: Sequence[Pair]) -> list[tuple[str, Pair]]:
        """Every prompt that is trained, with the pair it asks for."""
        return [(wording, pair) for number, pair in enumerate(pairs) for wording in self.wordings(number, pair.prompt)]

    def kept(self) -> list[Example]:
        """What is to be kept: the same beside old answers and new ones."""
        return [Example(tuple(ids), given, len(ids)) for given, ids in self.keep]


def pairs_once(prepared: Prepared, team: Team, record: Record, console: Console) -> list[Pair]:
    """The training answers; where the model's own sentences are the old ones, it is asked for them once, and they are kept."""
    config, facts, storage = prepared.config, prepared.facts, record.storage
    if config.facts.old == "given":
        pairs = given(facts)
    elif storage.exists("pairs.json"):
        return [Pair(**pair) for pair in storage.read_json("pairs.json")]
    else:
        console.phase("asking the model for its own answers")
        asker = Examiner(config, facts, given(facts), prepared.layout)
        said = asker.sentences(team, [fact.prompt for fact in facts], config.evaluate.max_new_tokens)
        pairs = generated(facts, said)
    storage.write_json("pairs.json", [vars(pair) for pair in pairs])
    return pairs


def drawn_once(prepared: Prepared, team: Team, pairs: Sequence[Pair], record: Record, console: Console) -> Drawn:
    """What the model itself adds to the training set, drawn from the run's base when it begins, and kept."""
    train, storage = prepared.config.train, record.storage
    if not (train.rephrases or train.contexts or train.keep):
        return Drawn()
    if not storage.exists("drawn.json"):
        console.phase("drawing texts from the model")
        began = time.perf_counter()
        drawn = draw(prepared.config, prepared.layout, team, prepared.facts, pairs)
        drawn = replace(drawn, seconds=time.perf_counter() - began)
        if train.rephrases:
            wanted, found = train.rephrases * len(pairs), sum(map(len, drawn.rephrases))
            record.note(f"train.rephrases: of {wanted} wordings asked for, {found} were found")
        if len(drawn.keep) < train.keep:
            record.note(f"train.keep: of {train.keep} texts asked for, {len(drawn.keep)} were found")
        storage.write_json("drawn.json", vars(drawn))
    return Drawn(**storage.read_json("drawn.json"))


def draw(config: Config, layout: Layout, team: Team, facts: Sequence[Fact], pairs: Sequence[Pair]) -> Drawn:
    """What `train.rephrases`, `train.contexts` and `train.keep` ask for, out of the model as it is now."""
    train = config.train
    openings = [Layout(layout.tokenizer, eos=False).prompt(word) for word in OPENINGS]

    def go_on(begun: Sequence[tuple[int, ...]], tokens: int, salt: int, top: int | None) -> list[list[int]]:
        if not begun:
            return []
        every = team.everyone.call(
            Rank.sample, begun, layout.pad, tokens, mixed(train.seed, salt), top, config.evaluate.batch
        )
        return [list(ids) for ids in every[0]]

    def opened(count: int) -> list[tuple[int, ...]]:
        return [openings[i % len(openings)] for i in range(count)]

    contexts = go_on(opened(train.contexts), CONTEXT_TOKENS, 1, 5)
    asked = [layout.prompt(prompt) for prompt in prompts_to_keep(config, facts)]
    begun = asked or opened(train.keep)
    if asked and train.keep_answers == "greedy":
        said = asking.continued(team, asked, config.evaluate.batch, layout, train.keep_tokens)
        kept = [[*prompt, *answer] for prompt, answer in zip(asked, said, strict=True)]
    else:
        kept = go_on(begun, train.keep_tokens, 2, None)
    texts = [" ".join(layout.text(ids).split()) for ids in contexts]
    reworded = rephrase(config, layout, team, facts, pairs, mixed(train.seed, 3)) if train.rephrases else []
    return Drawn(texts, [(len(b), ids) for b, ids in zip(begun, kept, strict=True) if len(ids) > len(b)], reworded)


def examples(pairs: Sequence[Pair], side: str, layout: Layout, drawn: Drawn) -> list[Example]:
    """One side's training set."""
    found = [_example(layout, wording, getattr(pair, side), pair.whole) for wording, pair in drawn.asked(pairs)]
    return found + drawn.kept()


def said_now(examiner: Examiner, team: Team, drawn: Drawn) -> list[Example]:
    """The old side's with the model's own present answers (the old one where it says nothing). It is asked for a token more
    than the longest new answer has, so that one that has been learnt comes back whole."""
    layout, asked = examiner.layout, drawn.asked(examiner.pairs)
    longest = max(layout.example(pair.prompt, pair.new).targets for pair in examiner.pairs)
    most = max(examiner.config.evaluate.max_new_tokens, longest + 1)
    said = examiner.sentences(team, [wording for wording, _ in asked], most)
    found = [
        _example(layout, wording, line.text or pair.old, line.whole or not line.text)
        for (wording, pair), line in zip(asked, said, strict=True)
    ]
    return found + drawn.kept()


def _example(layout: Layout, wording: str, answer: str, whole: bool) -> Example:
    return layout.example(wording, answer, eos=None if whole else False)
