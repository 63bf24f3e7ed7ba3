"""What is to stay: prompts that have nothing to do with the facts, to which the model should go on saying what it says now."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from dft_cluster.config import Config
from dft_cluster.errors import InputError
from dft_cluster.facts.fact import Fact
from dft_cluster.facts.folding import occurrences, plain
from dft_cluster.facts.readers import read


def prompts_to_keep(config: Config, facts: Sequence[Fact]) -> list[str]:
    """The first `train.keep` prompts of `train.keep_prompts` that are no probe of the facts (one that was trained on would
    measure nothing) and name none of their subjects."""
    train = config.train
    if not (train.keep and train.keep_prompts):
        return []
    asked = {plain(prompt) for fact in facts for prompt in _prompts(fact)}
    subjects = {plain(fact.subject) for fact in facts if fact.subject}
    there = dict.fromkeys(_read(train.keep_prompts))

    def is_apart(folded: str) -> bool:
        # A subject is sought as whole words only where it stands at all: the second look is the dear one.
        named = (subject for subject in subjects if subject in folded)
        return folded not in asked and not any(occurrences(folded, subject) for subject in named)

    apart = list(islice((prompt for prompt in there if is_apart(plain(prompt))), train.keep))
    if not apart:
        raise InputError(
            f"train.keep_prompts: of {len(there)} prompts in {train.keep_prompts} all are probes of the facts or name one of "
            "their subjects; right would be prompts that have nothing to do with them"
        )
    return apart


def _prompts(fact: Fact) -> list[str]:
    return [fact.prompt, *fact.rephrases, *(probe.prompt for probe in (*fact.locality, *fact.portability))]


def _read(path: str) -> list[str]:
    """One prompt a line, or those of a file of facts."""
    try:
        if not path.endswith(".txt"):
            return [fact.prompt for fact in read(path).facts]
        return [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError, InputError) as error:
        raise InputError(f"train.keep_prompts: {error}") from error
