"""Everything that can be known, and refused, before a rank is started."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from dft_cluster.config import Config
from dft_cluster.errors import InputError
from dft_cluster.facts.cleaning import choose, clean
from dft_cluster.facts.fact import Fact, fingerprint_of
from dft_cluster.facts.layout import Layout
from dft_cluster.facts.readers import read
from dft_cluster.methods.dft import Dft
from dft_cluster.methods.f_learning import FLearning
from dft_cluster.methods.ft_c import FtC
from dft_cluster.methods.full import Full
from dft_cluster.methods.interpolate import Interpolate
from dft_cluster.methods.job import Adapter, Job, Method
from dft_cluster.methods.keeping import prompts_to_keep
from dft_cluster.methods.memit import Memit
from dft_cluster.methods.rome import Rome
from dft_cluster.methods.window import refuse_too_long
from dft_cluster.models.source import resolve
from dft_cluster.models.structure import Parameter, adaptable, parameters, window
from dft_cluster.patch.fingerprint import fingerprint
from dft_cluster.ranks.rank import Source

METHODS: dict[str, Callable[[Config], Method]] = {
    "dft": Dft, "full": Full, "lora": Full, "ft_c": FtC, "f_learning": FLearning, "interpolate": Interpolate,
    "rome": Rome, "memit": Memit,
}  # fmt: skip
PACKAGES = ("torch", "transformers", "accelerate", "deepspeed", "ray", "datasets", "peft", "wandb", "dft-cluster")
WARM_UP = 0
"""As a round's number: what comes before round 1."""


@dataclass(frozen=True)
class Prepared:
    """A valid job: its facts, its model, its method, and what the user should know."""

    config: Config
    facts: list[Fact]
    notes: list[str]
    folder: Path
    parameters: list[Parameter]
    """The weights that are updated; of a seat, in its rounds."""
    layout: Layout
    method: Method
    standing: tuple[Parameter, ...] = ()
    """Of a seat: the weights that its rounds leave alone."""

    def seat(self, number: int) -> "Prepared":
        """What the ranks are built for in a round, or in the warm-up, which trains every weight itself."""
        if number == WARM_UP:
            return self._seated("none", self.parameters)
        adapter = self.method.adapter(self.config, number)
        weights = list(self.method.weights(self.config, self.folder, self.parameters))
        if adapter == "lora":
            weights = adaptable(self.folder, weights, self.config.lora.kinds, self.config.model.trust_remote_code)
        return self._seated(adapter, weights)

    def _seated(self, adapter: Adapter, weights: list[Parameter]) -> "Prepared":
        train = self.config.train.model_copy(update={"adapter": adapter})
        chosen = {p.index for p in weights}
        others = tuple(p for p in self.parameters if p.index not in chosen)
        config = self.config.model_copy(update={"train": train})
        return replace(self, config=config, parameters=weights, standing=others)

    def needs(self) -> tuple[str, list[int]]:
        """What tells two seats apart."""
        return self.config.train.adapter, [p.index for p in self.parameters]

    def job(self, source: Source) -> Job:
        """What the method works on; the training answers come later."""
        return Job(self.config, self.parameters, self.facts, self.layout, self.folder, source)

    def identity(self) -> dict[str, Any]:
        """What says which run this is; another one cannot go on where this one stopped."""
        return {
            "versions": {name: _version(name) for name in PACKAGES},
            "seed": self.config.train.seed,
            "fingerprints": {"model": fingerprint(self.folder), "facts": fingerprint_of(self.facts)},
            "base": str(self.folder),
            "notes": list(self.notes),
        }


def _version(package: str) -> str:
    """As installed. A run in one process does without some of them."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


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
    layout: Layout | None = None
    method = METHODS[config.method.name](config)
    prepared: Prepared | None = None
    with _noted(problems, "facts: "):
        facts, more = read_facts(config, given)
        notes += more
    with _noted(problems):
        prompts_to_keep(config, facts)
    with _noted(problems):
        folder = resolve(config.model)
        tokenizer = None
        with _noted(problems):
            tokenizer = _tokenizer(folder, config)
            layout = Layout(tokenizer, config.train.template, config.train.eos)
        if layout is not None:
            with _noted(problems):
                refuse_too_long(config, facts, layout, window(folder, config.model.trust_remote_code))
        with _noted(problems):
            _refuse_within(config, folder)
        weights = parameters(folder, config.model.trust_remote_code)
        if tokenizer is not None:
            # Whatever is wrong with the template, the method can still be checked.
            layout = layout or Layout(tokenizer, eos=False)
            prepared = Prepared(config, facts, notes, folder, weights, layout, method)
            with _noted(problems):
                method.check(replace(prepared.seat(1), config=config).job(Source(config.model)))
                prepared.seat(min(2, config.method.rounds))  # F-Learning learns there, perhaps with an adapter
    if problems or prepared is None:
        raise InputError("\n".join(problems))
    return prepared


def _refuse_within(config: Config, folder: Path) -> None:
    """What a run leaves beside its patch cannot be written into the model."""
    place = config.run.dir
    leaves = [
        what for what, asked in (("run.export", config.run.export), ("warmup.epochs", config.warmup.epochs)) if asked
    ]
    if leaves and "://" not in place and Path(place).expanduser().resolve().is_relative_to(folder.resolve()):
        raise InputError(
            f"run.dir: {place} lies within the model {folder}, which stays as it is, and {' and '.join(leaves)} writes a model; "
            "right would be another folder"
        )


@contextmanager
def _noted(problems: list[str], place: str = "") -> Iterator[None]:
    """Keeps a problem, a file that may not be read as well, and goes on with the next check."""
    try:
        yield
    except (InputError, OSError) as error:
        problems.append(f"{place}{error}")


def _tokenizer(folder: Path, config: Config) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=config.model.trust_remote_code)
    except Exception as error:  # what is wrong in its files may fail in any way
        raise InputError(
            f"model.name: {folder} has no tokenizer that transformers can read ({type(error).__name__}: {error})"
        ) from error
