"""C = E[k kᵀ]: what a down-projection reads in ordinary text, measured once and kept.

Every real token of a text counts; one that is longer than `LONGEST` tokens is cut into several. Where the text is the facts'
own prompts, bare and behind the sampled prefixes, the subjects' last tokens are left out: their keys are what an edit is to
change. Files in the cache are named by all that their bits depend on, the text, the layer and the number of texts, so that
nothing else is found.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dft_cluster.editing.anatomy import Anatomy
from dft_cluster.editing.requests import Row
from dft_cluster.editing.states import run_until
from dft_cluster.errors import InputError
from dft_cluster.facts.layout import Layout
from dft_cluster.facts.records import read_text
from dft_cluster.models.source import cache_folder
from dft_cluster.patch.atomic import new_file

LONGEST = 512
FACTS = "facts"
Ids = tuple[int, ...]


@dataclass(frozen=True)
class Passage:
    """A text's tokens, and the place of the one that does not count."""

    ids: Ids
    without: int | None = None

    @property
    def tokens(self) -> int:
        return len(self.ids) - (self.without is not None)


@dataclass(frozen=True)
class Text:
    """Tokenized texts, and where they come from in words."""

    passages: list[Passage]
    source: str

    @property
    def tokens(self) -> int:
        return sum(passage.tokens for passage in self.passages)

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(repr([(p.ids, p.without) for p in self.passages]).encode()).hexdigest()


@dataclass(frozen=True)
class Covariance:
    """E[k kᵀ] over so many tokens."""

    mean: Tensor
    tokens: int
    seconds: float
    """What the pass over the text took, which other layers may share."""

    def solid(self) -> Tensor:
        """In float64, and solvable however short the text: shrunk towards μI, μ = tr C / d (OAS, Chen et al. 2010),

            (1 − ρ)·C + ρ·μI        ρ = min(1, ((1 − 2/d)·tr C² + tr² C) / ((n + 1 − 2/d)·(tr C² − tr² C / d)))

        for n tokens and keys of width d. Beside a long text ρ is next to nothing; a short one says little of directions it does
        not use, and ρ keeps an edit from taking them for free.
        """
        mean, n, d = self.mean.double(), self.tokens, len(self.mean)
        trace, squares = mean.trace(), mean.square().sum()
        beyond = (n + 1 - 2 / d) * (squares - trace**2 / d)
        rho = ((1 - 2 / d) * squares + trace**2) / beyond if beyond > 0 else torch.ones(())
        rho = rho.clamp(max=1.0)
        return (1 - rho) * mean + rho * trace / d * torch.eye(d, dtype=mean.dtype, device=mean.device)


def refuse_unreadable(source: str, split: str, samples: int) -> None:
    """Before anything is begun: a source that is not the facts' own prompts must hold some text."""
    if source != FACTS and not _texts(source, split, samples):
        raise InputError(f"editing.covariance: {source} holds no text")


def text_for(source: str, split: str, samples: int, prompts: Sequence[Row], layout: Layout) -> Text:
    """The first texts of the facts' prompts, of a file (parted by blank lines) or of a hub data set's `text` column."""
    if source == FACTS:
        found = [Passage(row.ids[: row.start], row.at) for row in prompts[:samples]]
        return Text(found, f"{len(found)} of the facts' prompts, bare and behind sampled prefixes")
    texts = _texts(source, split, samples)
    bare = Layout(layout.tokenizer, "plain", eos=False)
    cut = (window for text in texts for window in _windows(bare.prompt(text), bare.prompt("")) if window)
    found = [Passage(ids) for ids in islice(cut, samples)]
    if not found:
        raise InputError(f"editing.covariance: {source} holds no text")
    return Text(found, f"{len(found)} texts of {source}")


def _windows(ids: Ids, begin: Ids) -> Iterator[Ids]:
    """A text whole, or in pieces of `LONGEST` tokens, each after what the tokenizer begins every text with."""
    inside, size = ids[len(begin) :], LONGEST - len(begin)
    for first in range(0, max(len(inside), 1), size):
        yield (*begin, *inside[first : first + size])


def _texts(source: str, split: str, samples: int) -> list[str]:
    """Those of a file, or enough of a hub data set's."""
    file = Path(source)
    if file.is_file():
        try:
            return [text for part in re.split(r"\r?\n\s*\n", read_text(source)) if (text := part.strip())]
        except InputError as error:
            raise InputError(f"editing.covariance: {error}") from error
    if file.suffix in {".txt", ".md"} or file.is_absolute():
        raise InputError(f"editing.covariance: no file {source}; right would be facts, a text file or a hub data set")
    return _from_hub(source, split, samples)


@lru_cache(maxsize=2)
def _from_hub(name: str, split: str, samples: int) -> list[str]:
    """`name` may carry a configuration: owner/name:configuration."""
    import datasets

    repository, _, configuration = name.partition(":")
    try:
        rows = datasets.load_dataset(repository, configuration or None, split=split, streaming=True)
        # Some data sets hold an empty line for every other text.
        return [text for row in islice(rows, 4 * samples) if (text := str(row["text"])).strip()]
    except KeyError as error:
        raise InputError(f"editing.covariance: the data set {name!r} has no column named text") from error
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise InputError(
            f"editing.covariance: {name!r} is no file here, and no data set that can be read (split {split!r}): {error}"
        ) from error


class Sums:
    """Σ k kᵀ of several layers over the texts that a rank was given."""

    def __init__(self, anatomy: Anatomy, layers: Sequence[int]) -> None:
        self._anatomy = anatomy
        self.by_layer = {
            layer: torch.zeros((anatomy.places[layer].inner,) * 2, device=anatomy.device) for layer in layers
        }
        self.tokens = 0

    @torch.no_grad()
    def add(self, passages: Sequence[Passage]) -> None:
        """One forward pass, up to the last of the layers."""
        anatomy = self._anatomy
        with anatomy.frozen(), ExitStack() as stack:
            caught = {layer: stack.enter_context(anatomy.catching(anatomy.downs[layer])) for layer in self.by_layer}
            counted = run_until(anatomy, [passage.ids for passage in passages], max(self.by_layer))
            for row, passage in enumerate(passages):
                if passage.without is not None:
                    counted[row, passage.without] = False
            for layer, total in self.by_layer.items():
                taken = caught[layer].taken
                assert taken is not None
                keys = taken[counted].float()
                total.addmm_(keys.T, keys)
        self.tokens += int(counted.sum())


def weights_fingerprint(model: Any) -> str:
    """The SHA-256 of the live weights: of what the keys are measured with, whatever file it came from."""
    whole = hashlib.sha256()
    for name, weight in model.named_parameters():
        whole.update(f"{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
        whole.update(weight.detach().cpu().flatten().view(torch.uint8).numpy().data)
    return whole.hexdigest()


def circumstances(model: Any, world: int, device: torch.device) -> str:
    """All that the bits of a covariance depend on beside its text: the weights, the settings they are run with, and how the
    work is cut up."""
    settings = {k: v for k, v in model.config.to_dict().items() if k not in ("_name_or_path", "transformers_version")}
    told = json.dumps(settings, sort_keys=True, default=str)
    where = f"{torch.get_num_threads()} threads" if device.type != "cuda" else torch.cuda.get_device_name(device)
    return f"{weights_fingerprint(model)} {told} torch {torch.__version__} {world} ranks {device.type} {where}"


@dataclass(frozen=True)
class Key:
    """What names a cached covariance, but for its layer."""

    model: str
    """Its circumstances."""
    text: str
    samples: int

    def file(self, layer: str) -> Path:
        name = hashlib.sha256(f"{self.model}\n{self.text}\n{layer}\n{self.samples}".encode()).hexdigest()[:32]
        return cache_folder() / "covariance" / f"{name}.safetensors"


def cached(key: Key, layer: str, inner: int, warn: Callable[[str], None]) -> Covariance | None:
    """What an earlier run kept, or None; a file that cannot be read is told and measured anew."""
    file = key.file(layer)
    try:
        if not file.is_file():
            return None
        with safe_open(file, framework="pt") as tensors:
            mean, tokens = tensors.get_tensor("mean"), int(tensors.get_tensor("tokens"))
            seconds = float(tensors.get_tensor("pass_seconds"))
    except (SafetensorError, OSError) as error:
        warn(f"{file} cannot be read and is measured anew: {error}")
        return None
    return Covariance(mean, tokens, seconds) if mean.shape == (inner, inner) else None


def keep(key: Key, layer: str, covariance: Covariance) -> None:
    tensors = {
        "mean": covariance.mean.cpu().contiguous(),
        "tokens": torch.tensor(covariance.tokens),
        "pass_seconds": torch.tensor(covariance.seconds),
    }
    with new_file(key.file(layer)) as file:
        file.write(save(tensors, {"layer": layer, "samples": str(key.samples)}))
