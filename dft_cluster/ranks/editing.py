"""The verbs of ROME and MEMIT: what a rank does to find an edit, and how every rank takes it into its own share of θ."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dft_cluster.arithmetic.closed_form import closed_form, rank_one
from dft_cluster.editing import contexts, covariance, states, trace
from dft_cluster.editing.anatomy import Anatomy
from dft_cluster.editing.covariance import Covariance, Ids, Key, Passage, Sums
from dft_cluster.editing.requests import Request, Row
from dft_cluster.editing.values import Place, Settings, Values, seek
from dft_cluster.errors import InputError
from dft_cluster.models.mlp import DownProjection
from dft_cluster.models.structure import Parameter
from dft_cluster.training.shards import Fragment

_AT_ONCE = 1 << 22
"""Elements of a weight that are gone through at a time."""


class Editing:
    """A rank that edits. Every rank holds the whole working weights (ZeRO 1 or 2) and its own share of the masters; the
    covariances, as wide as an MLP and squared, lie on the group's rank 0 alone, which does all solving."""

    _engine: Any
    _progress: tuple[str, int, int, float]
    parameters: list[Parameter]
    _opened: Anatomy | None = None
    _sums: Sums | None = None
    _covariances: dict[int, Covariance] | None = None

    @property
    def _anatomy(self) -> Anatomy:
        if self._opened is None or self._opened.model is not self._engine.module:
            self._opened = Anatomy(self._engine.module)
        return self._opened

    @property
    def _first(self) -> bool:
        return bool(self._engine.place.rank == 0)

    def places(self) -> list[DownProjection]:
        return self._anatomy.places

    def say_prefixes(self, openings: Sequence[Ids], count: int, tokens: int, seed: int) -> list[list[int]]:
        self._progress = ("prefixes", 0, 0, 0.0)
        return contexts.sample(self._anatomy, openings, count, tokens, seed)

    def trace(self, asked: Sequence[trace.Asked]) -> list[float]:
        """The indirect effects of all layers, added up over these prompts."""
        self._progress = ("trace", 0, 0, 0.0)
        return trace.indirect_effects(self._anatomy, asked)

    def recall_covariances(self, layers: Sequence[int], text: str, samples: int) -> tuple[list[int], float, list[str]]:
        """Rank 0 takes what earlier runs have kept; returns the layers that are missing, the seconds of the longest pass that
        measured others, and what was odd."""
        if not self._first:
            return [], 0.0, []
        self._progress = ("covariance", 0, 0, 0.0)
        notes: list[str] = []
        engine = self._engine
        self._key = Key(covariance.circumstances(engine.module, engine.place.world, engine.device), text, samples)
        places = [self._anatomy.places[layer] for layer in layers]
        found = {p.layer: covariance.cached(self._key, p.name, p.inner, notes.append) for p in places}
        self._covariances = {layer: known for layer, known in found.items() if known is not None}
        seconds = max((known.seconds for known in self._covariances.values()), default=0.0)
        return [layer for layer, known in found.items() if known is None], seconds, notes

    def begin_covariances(self, layers: Sequence[int]) -> None:
        self._sums = Sums(self._anatomy, layers)

    def add_covariances(self, texts: Sequence[Passage]) -> None:
        assert self._sums is not None, "begin_covariances comes first"
        if texts:
            self._sums.add(texts)

    def end_covariances(self, seconds: float) -> list[str]:
        """The ranks' sums come together on rank 0, which keeps them for later runs, with the seconds that they took; returns
        what could not be kept."""
        assert self._sums is not None, "begin_covariances comes first"
        sums, self._sums = self._sums, None
        tokens = torch.tensor([sums.tokens], device=self._engine.device)
        together = self._engine.place.world > 1
        notes: list[str] = []
        if together:
            torch.distributed.reduce(tokens, 0)
        for layer in sorted(sums.by_layer):
            total = sums.by_layer.pop(layer)
            if together:
                torch.distributed.reduce(total, 0)
            if self._first:
                assert self._covariances is not None, "recall_covariances comes first"
                self._covariances[layer] = Covariance((total / tokens).cpu(), int(tokens), seconds)
                try:
                    covariance.keep(self._key, self._anatomy.places[layer].name, self._covariances[layer])
                except (InputError, OSError) as error:  # this run has it in memory, and goes on
                    notes.append(
                        f"the covariance of layer {layer} is not kept, and later runs measure it anew: {error}"
                    )
        return notes

    def seek_values(self, requests: Sequence[Request], place: Place, settings: Settings, clamp: float) -> Values | None:
        """The values of some facts, sought together."""
        self._progress = ("values", 0, 0, 0.0)
        return seek(self._anatomy, requests, place, settings, clamp) if requests else None

    def read_states(self, rows: Sequence[Row], layer: int, block: int) -> tuple[Tensor, Tensor]:
        """The keys of `layer` and what `block` gives, at the subjects' last tokens."""
        self._progress = ("keys", 0, 0, 0.0)
        return states.read(self._anatomy, rows, layer, block)

    def map_key(self, layer: int, key: Tensor) -> Tensor:
        """This rank's part of W k in float64, from its share of the masters: the working weights may be rounded."""
        place = self._anatomy.places[layer]
        total, key = torch.zeros(place.hidden, dtype=torch.float64), key.double()
        width = place.hidden if place.stored_in_out else place.inner
        for fragment in self._fragments_of(layer):
            for row, until, begin, end in _rows(fragment, width):
                held = torch.zeros((until - row) * width, dtype=torch.float64)
                held[begin - row * width : end - row * width] = _span(fragment, self._engine.masters, begin, end)
                rows = held.view(-1, width)
                if place.stored_in_out:
                    total += key[row:until] @ rows
                else:
                    total[row:until] += rows @ key
        return total

    def solve_rank_one(self, layer: int, key: Tensor, given: Tensor, value: Tensor) -> tuple[Tensor, Tensor] | None:
        """ROME's factors, on rank 0; `given` is W k, `value` the whole output of the down-projection, its bias included."""
        if not self._first:
            return None
        bias: Any = getattr(self._anatomy.downs[layer], "bias", None)
        if bias is not None:
            value = value - bias.detach().float().cpu()
        device = self._engine.device
        left, right = rank_one(given.to(device), self._solid(layer), key.to(device), value.to(device))
        return left[:, None].float().cpu(), right[:, None].float().cpu()

    def solve_closed_form(self, layer: int, keys: Tensor, weight: float) -> Tensor | None:
        """MEMIT's X = (λC + K Kᵀ)⁻¹K, on rank 0; `keys` is K, [inner, facts]."""
        if not self._first:
            return None
        return closed_form(weight * self._solid(layer), keys.to(self._engine.device)).float().cpu()

    def _solid(self, layer: int) -> Tensor:
        assert self._covariances is not None, "recall_covariances comes first"
        known = self._covariances[layer]
        return replace(known, mean=known.mean.to(self._engine.device)).solid()

    @torch.no_grad()
    def edit(self, layer: int, left: Tensor, right: Tensor) -> None:
        """W ← W + left·rightᵀ: each rank adds its own slice to its masters; then the working weights follow."""
        self._progress = ("edit", 0, 0, 0.0)
        if self._anatomy.places[layer].stored_in_out:
            left, right = right, left
        for fragment in self._fragments_of(layer):
            _add(fragment, self._engine.masters, left, right)
        self._engine.push()

    def _fragments_of(self, layer: int) -> Iterator[Fragment]:
        [number] = [p.index for p in self.parameters if p.name == self._anatomy.places[layer].weight]
        return (fragment for fragment in self._engine.fragments if fragment.parameter == number)


def _rows(fragment: Fragment, width: int) -> Iterator[tuple[int, int, int, int]]:
    """Some rows of `width` at a time (first, last + 1), and the elements of them that this fragment holds (first, last + 1)."""
    at_once, last = max(1, _AT_ONCE // width), -(-fragment.stop // width)
    for row in range(fragment.start // width, last, at_once):
        until = min(row + at_once, last)
        yield row, until, max(row * width, fragment.start), min(until * width, fragment.stop)


def _span(fragment: Fragment, masters: Sequence[Tensor], begin: int, end: int) -> Tensor:
    return fragment.of(masters)[begin - fragment.start : end - fragment.start]


def _add(fragment: Fragment, masters: Sequence[Tensor], left: Tensor, right: Tensor) -> None:
    """Adds the elements of left·rightᵀ, counted row by row, that this fragment holds."""
    width, device = right.shape[0], fragment.of(masters).device
    left, right = left.to(device), right.to(device)
    for row, until, begin, end in _rows(fragment, width):
        product = (left[row:until] @ right.T).flatten()
        _span(fragment, masters, begin, end).add_(product[begin - row * width : end - row * width])
