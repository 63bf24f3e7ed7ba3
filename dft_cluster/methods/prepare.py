"""Everything that can be known, and refused, before a rank is started."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from dft_cluster.config import Config
from dft_cluster.errors import InputError
from dft_cluster.facts.cleaning import choose, clean
from dft_cluster.facts.fact import Fact
from dft_cluster.facts.layout import Layout
from dft_cluster.facts.readers import read
from dft_cluster.methods.dft import Dft
from dft_cluster.methods.full import Full
from dft_cluster.methods.job import Job, Method
from dft_cluster.models.source import resolve
from dft_cluster.models.structure import Parameter, parameters
from dft_cluster.patch.fingerprint import fingerprint

METHODS: dict[str, type[Method]] = {"dft": Dft, "full": Full}
PACKAGES = ("torch", "transformers", "accelerate", "deepspeed", "ray", "datasets", "peft", "wandb", "dft-cluster")


@dataclass(frozen=True)
class Prepared:
    """A valid job: its facts, its model, its method, and what the user should know."""

    config: Config
    facts: list[Fact]
    notes: list[str]
    folder: Path
    parameters: list[Parameter]
    layout: Layout
    method: Method

    def identity(self) -> dict[str, Any]:
        """What says which run this is; another one cannot go on where this one stopped."""
        facts = json.dumps([asdict(fact) for fact in self.facts], ensure_ascii=False)
        return {
            "versions": {name: metadata.version(name) for name in PACKAGES},
            "seed": self.config.train.seed,
            "fingerprints": {"model": fingerprint(self.folder), "facts": hashlib.sha256(facts.encode()).hexdigest()},
            "base": str(self.folder),
            "notes": list(self.notes),
        }


def read_facts(config: Config, given: Sequence[Fact] | None = None) -> tuple[list[Fact], list[str]]:
    """The facts to teach, and what was left out and why."""
    facts = config.facts
    notes: list[str] = []
    if given is None:
        reading = read(facts.path, facts.format, probes=facts.probes, file=facts.file, split=facts.split)
        given = reading.facts
        notes += reading.notes
    cleaned = clean(given)
    if not cleaned.facts:
        raise InputError("\n".join(["no facts are left to change", *notes, *cleaned.report().splitlines()]))
    notes += cleaned.report().splitlines()
    chosen, more = choose(cleaned.facts, facts.limit, facts.seed)
    return chosen, notes + more


def prepare(config: Config, given: Sequence[Fact] | None = None) -> Prepared:
    """Checks facts, model, tokenizer, template and method; every problem is an InputError, all of them at once."""
    problems: list[str] = []
    facts: list[Fact] = []
    notes: list[str] = []
    weights: list[Parameter] = []
    folder, layout = Path(), None
    method = METHODS[config.method.name]()
    with _noted(problems, "facts: "):
        facts, notes = read_facts(config, given)
    with _noted(problems):
        folder = resolve(config.model)
        with _noted(problems):
            layout = _layout(folder, config)
        weights = parameters(folder, config.model.trust_remote_code)
        method.check(Job(config, weights, [], [], 0))
    if problems or layout is None:
        raise InputError("\n".join(problems))
    return Prepared(config, facts, notes, folder, weights, layout, method)


@contextmanager
def _noted(problems: list[str], place: str = "") -> Iterator[None]:
    """Keeps a problem and goes on with the next check."""
    try:
        yield
    except InputError as error:
        problems.append(f"{place}{error}")


def _layout(folder: Path, config: Config) -> Layout:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=config.model.trust_remote_code)
    except (OSError, ValueError) as error:
        raise InputError(f"model.name: {folder} has no tokenizer that transformers can read: {error}") from error
    return Layout(tokenizer, config.train.template, config.train.eos)
