"""What no run can honour: keys of a config that do not go with each other, whatever the model and the facts."""

from collections.abc import Iterator

from dft_cluster import storage_uri
from dft_cluster.config import FORGETS, LOOKS_AT_OLD, ONE_ROUND, Config

FIRST_TO_LEARN = {"full": 1, "lora": 1, "ft_c": 1, "f_learning": FORGETS + 1}
"""The round from which on a method's rounds are one fine-tune."""


def impossible(config: Config) -> Iterator[str]:
    """Each problem names its keys and what would be right."""
    yield from _of_rounds(config)
    yield from _of_training(config)
    if config.method.name == "dft":
        yield from _of_dft(config)
    yield from _of_what_is_read_and_written(config)


def _of_rounds(config: Config) -> Iterator[str]:
    name, rounds, keep = config.method.name, config.method.rounds, config.converge.keep
    if config.method.layers != "auto" and name not in (*ONE_ROUND, "ft_c"):
        yield f"method.layers: goes with rome, memit and ft_c (the method is {name}); leave it out"
    if name in ONE_ROUND and rounds > 1:
        yield f"method.rounds: {name} is done in one round (it is {rounds}); leave it out"
    if name == "f_learning" and rounds < FIRST_TO_LEARN[name]:
        yield "method.rounds: f_learning forgets in round 1 and learns after it; right would be at least 2"
    first, schedule = FIRST_TO_LEARN.get(name, rounds), config.train.schedule
    if schedule != "constant" and rounds > first:
        yield (
            f"train.schedule: {schedule} would begin anew in each of rounds {first} to {rounds} (method.rounds), which are one "
            f"fine-tune; right would be constant, or method.rounds={first}"
        )
    if isinstance(keep, int) and keep > rounds:
        yield f"converge.keep: round {keep} of method.rounds={rounds}; right would be one of these"


def _of_training(config: Config) -> Iterator[str]:
    train, name = config.train, config.method.name
    if name == "lora" and train.adapter != "lora":
        yield f"train.adapter: method.name=lora is plain fine-tuning of an adapter (it is {train.adapter}); leave it out"
    if name == "f_learning" and train.adapter != "none":
        yield (
            "train.adapter: f_learning has a setting for each of its halves; right would be none, with f_learning.forget=lora or "
            "f_learning.learn=lora"
        )
    if train.within is not None:
        yield from _of_a_bound(config)
    if name == "ft_c" and train.adapter != "none":
        yield "train.adapter: ft_c bounds the weights themselves; right would be none"
    if name in ONE_ROUND:
        if train.adapter != "none":
            yield f"train.adapter: {name} changes the weights themselves; right would be none"
        if train.zero_stage == 3:
            yield (
                f"train.zero_stage: {name} runs each rank's share of the facts through the whole model, which 3 cuts up; right "
                "would be 2, which shards the rest"
            )
        for key in ("rephrases", "contexts", "keep"):
            if getattr(train, key):
                yield f"train.{key}: {name} is taught no texts; right would be 0"
    if train.offload == "all" and train.zero_stage != 3:
        yield f"train.offload: all moves sharded weights, which needs train.zero_stage=3 (it is {train.zero_stage})"


def _of_a_bound(config: Config) -> Iterator[str]:
    name, halves = config.method.name, (config.f_learning.forget, config.f_learning.learn)
    if name in ("full", "lora"):
        yield f"train.within: {name} has no delta of a round to bound; right would be method.name=ft_c with ft_c.epsilon"
    elif name == "ft_c":
        yield "train.within: ft_c has a bound of its own; right would be ft_c.epsilon"
    elif name in ONE_ROUND:
        yield f"train.within: {name} trains no weights; leave it out"
    elif config.train.adapter != "none" or (name == "f_learning" and "lora" in halves):
        yield "train.within: bounds the weights themselves, which an adapter leaves as they are; leave it out"


def _of_dft(config: Config) -> Iterator[str]:
    variant, blind = config.dft, not LOOKS_AT_OLD[config.dft.mask]
    if variant.add == "difference" and (variant.mask, variant.by) != ("conflict", "difference"):
        yield (
            f"dft.add: the difference is known where it ranks the conflicts, and dft.mask is {variant.mask}, dft.by "
            f"{variant.by}; right would be new"
        )
    if blind and variant.by == "new":
        yield f"dft.by: dft.mask={variant.mask} is ranked by itself; leave it out"
    if blind and (variant.reuse > 1 or variant.renew or variant.old_epochs):
        yield f"dft.reuse, dft.renew, dft.old_epochs: dft.mask={variant.mask} does without the old answers; leave them out"
    if variant.scales and variant.everywhere:
        yield "dft.rest, dft.outside: a line search (dft.scales) moves all that was added; leave one of them out"
    if variant.scales and config.train.adapter != "none":
        yield "dft.scales: a line search needs θ of the round's start, which an adapter does not keep; right would be none"
    if config.method.of == "conflicts" and variant.mask != "conflict":
        yield (
            f"method.of: with dft.mask={variant.mask} there are no conflicts to take a share of; right would be all, of which "
            "every mask takes as many"
        )


def _of_what_is_read_and_written(config: Config) -> Iterator[str]:
    facts, model, place = config.facts, config.model, config.run.dir
    if facts.format == "pairs" and facts.path.count(",") != 1:
        yield f"facts.path: format pairs takes two files, old.json,new.json (it is {facts.path!r})"
    if facts.file is not None and facts.format != "hub":
        yield f"facts.file: only goes with facts.format=hub (it is {facts.format})"
    if facts.seed is not None and facts.limit is None:
        yield "facts.seed: chooses which facts a facts.limit takes, and there is none"
    if model.name == "smollm2-135m" and (model.gguf, model.revision) != (None, None):
        yield "model.gguf, model.revision: do not go with model.name=smollm2-135m, which comes with its package"
    if "://" in place and (strange := storage_uri.strange(place)):
        yield (
            f"run.dir: a storage URI must not hold a key, and this one has {', '.join(strange)}; the storage's own "
            f"environment variables are read instead (it may say {', '.join(sorted(storage_uri.OPTIONS))})"
        )
    if "teacher_forced" not in config.evaluate.protocols:
        yield "evaluate.protocols: teacher_forced must be among them, the stop rule reads it"
