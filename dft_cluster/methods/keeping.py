"""What is to stay: prompts that have nothing to do with the facts, to which the model should go on saying what it says now."""

from collections.abc import Callable, Sequence
from itertools import filterfalse, islice
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
    there = read_prompts(train.keep_prompts)
    apart = list(islice(filterfalse(about(facts), there), train.keep))
    if not apart:
        raise InputError(
            f"train.keep_prompts: of {len(there)} prompts in {train.keep_prompts} all are probes of the facts or name one of "
            "their subjects; right would be prompts that have nothing to do with them"
        )
    return apart


def about(facts: Sequence[Fact]) -> Callable[[str], bool]:
    """Tells of a prompt whether it is a probe of these facts or names one of their subjects."""
    asked = {plain(prompt) for fact in facts for prompt in fact.prompts}
    subjects = {plain(fact.subject) for fact in facts if fact.subject}

    def is_about(prompt: str) -> bool:
        folded = plain(prompt)
        # A subject is sought as whole words only where it stands at all: the second look is the dear one.
        named = (subject for subject in subjects if subject in folded)
        return folded in asked or any(occurrences(folded, subject) for subject in named)

    return is_about


def read_prompts(path: str) -> list[str]:
    """One prompt a line, or those of a file of facts; each once."""
    try:
        if not path.endswith(".txt"):
            return list(dict.fromkeys(fact.prompt for fact in read(path).facts))
        lines = map(str.strip, Path(path).read_text(encoding="utf-8").splitlines())
        return list(dict.fromkeys(filter(None, lines)))
    except (OSError, UnicodeDecodeError, InputError) as error:
        raise InputError(f"train.keep_prompts: {error}") from error
