"""The value that says the new answer: what ROME's v* and MEMIT's z have in common.

At one place of the model, at the subject's last token, a vector h is moved by

    δ = argmin  −log p(new answer | h + δ) / tokens, the mean of the bare prompt and a prefixed one
              + kl · KL(p(· | h + δ) ‖ p(·)) at the essence prompt "{subject} is a"
              + weight_decay · ‖δ‖ / ‖h‖²

by Adam, with ‖δ‖ ≤ clamp · ‖h‖ after each step, until the loss falls below `ENOUGH`. The prefixes take turns, one a step: the
cost of a step does not depend on their number. All facts of a batch are sought at once, one row of δ each, each with its own
stop. What cannot change is computed once: the tokens before the subject's end lie in a cache (not where a layer keeps a state
instead of keys and values, or sees but a short window), and the blocks below the place are entered with what they gave the first
time.
"""

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from dft_cluster.editing.anatomy import Anatomy
from dft_cluster.editing.requests import Request

ENOUGH = 5e-2
ALWAYS = -1
_BETA_1, _BETA_2, _EPS = 0.9, 0.999, 1e-8


class Settings(Protocol):
    """How the values are sought (`config.editing`)."""

    @property
    def steps(self) -> int: ...
    @property
    def lr(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def kl(self) -> float: ...


@dataclass(frozen=True)
class Place:
    """Where the vector is: the output of a block, or that of the down-projection inside it."""

    layer: int
    inside: bool


@dataclass(frozen=True)
class Values:
    """By fact: h + δ and h at the bare prompt, and the last loss."""

    wanted: Tensor
    given: Tensor
    losses: list[float]


@dataclass
class _Batch:
    """Rows side by side, right-padded, from the subject's last token on; `cache` holds what lies before.

    `rows` and `columns` say where logits are read: first `targets` many for the answers' tokens (with `shares` of their
    fact's loss), then one for each essence prompt.
    """

    ids: Tensor
    mask: Tensor
    positions: Tensor
    at: Tensor
    """The column of the subject's last token."""
    fact: Tensor
    """The fact of each row."""
    turn: Tensor
    """Which turn each row belongs to, or `ALWAYS`."""
    rows: Tensor
    columns: Tensor
    targets: Tensor
    shares: Tensor
    cache: Any = None
    below: Tensor | None = None
    """What the block below the place gave."""

    @property
    def before(self) -> int:
        """Tokens in the cache."""
        return self.mask.shape[1] - self.ids.shape[1]

    def parts(self, facts: Tensor, turn: int) -> list["_Batch"]:
        """Some facts, numbered anew in this order: their bare prompts, the prefixed ones whose turn it is, the essence.

        Rows between two powers of two in length go together: most are short, and would be padded to the longest.
        """
        number = torch.full((int(self.fact.max()) + 1,), -1, device=self.fact.device)
        number[facts] = torch.arange(len(facts), device=self.fact.device)
        asked = (number[self.fact] >= 0) & ((self.turn == ALWAYS) | (self.turn == turn))
        lengths = self.mask[:, self.before :].sum(1)
        sizes = lengths.log2().ceil()
        return [self._of(asked & (sizes == size), number) for size in sizes[asked].unique()]

    def _of(self, these: Tensor, number: Tensor) -> "_Batch":
        """Some rows, their facts under new numbers."""
        kept = these.nonzero()[:, 0]
        row = torch.full_like(self.fact, -1)
        row[kept] = torch.arange(len(kept), device=row.device)
        asked = row[self.rows] >= 0
        answers = asked[: len(self.targets)]
        before = self.before
        width = int(self.mask[kept, before:].sum(1).max())
        cache = _fresh(self.cache)
        if cache is not None:
            cache.batch_select_indices(kept)
        return _Batch(
            self.ids[kept, :width], self.mask[kept, : before + width], self.positions[kept, :width], self.at[kept],
            number[self.fact[kept]], self.turn[kept], row[self.rows[asked]], self.columns[asked],
            self.targets[answers], self.shares[answers], cache,
            None if self.below is None else self.below[kept, :width],
        )  # fmt: skip


def seek(
    anatomy: Anatomy,
    requests: Sequence[Request],
    place: Place,
    settings: Settings,
    clamp: float,
    *,
    cached: bool = True,
) -> Values:
    """The values of a batch of facts; `cached=False` takes every token through the model in every step."""
    with anatomy.frozen(), _attention(anatomy.device):
        batch = _collate(anatomy, requests, cached=cached)
        given, essence, whole = _first_pass(anatomy, batch, place)
        model = _Model(anatomy, place, whole)
        turns = max(len(request.rows) for request in requests) - 1
        delta = torch.zeros_like(given)
        latest = torch.full((len(requests),), torch.inf, device=anatomy.device)
        facts = torch.arange(len(requests), device=anatomy.device)
        adam = _Adam(given.shape, anatomy.device, settings.lr)
        norms = given.norm(dim=1)
        for step in range(settings.steps):
            moved = delta[facts].requires_grad_()
            loss, kept = settings.weight_decay * moved.norm(dim=1) / norms[facts] ** 2, essence[facts]
            for part in batch.parts(facts, step % turns if turns else 0):
                loss = loss + _loss(model.logits(part, moved), part, kept, settings.kl)
            latest[facts] = loss.detach()
            going = (latest[facts] >= ENOUGH).nonzero()[:, 0]
            if step == settings.steps - 1 or not len(going):
                break
            [slope] = torch.autograd.grad(loss[going].sum(), moved)
            facts = facts[going]
            stepped = delta[facts] - adam.step(slope[going], facts)
            most = clamp * norms[facts]
            delta[facts] = stepped * (most / stepped.norm(dim=1).clamp_min(1e-12)).clamp_max(1)[:, None]
    return Values((given + delta).cpu(), given.cpu(), latest.tolist())


def _attention(device: torch.device) -> AbstractContextManager[None]:
    """On a CPU the plain formula: flash attention's backward pass there is slow for a few tokens behind a cache."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


def _loss(logits: Tensor, batch: _Batch, essence: Tensor, kl: float) -> Tensor:
    """By fact: −log p of the answer, and what the essence prompt lost, as far as these rows tell."""
    said, answers, facts = torch.log_softmax(logits, dim=-1), len(batch.targets), batch.fact[batch.rows]
    nll = -said[:answers].gather(1, batch.targets[:, None])[:, 0] * batch.shares
    now = said[answers:]
    drift = (now.exp() * (now - essence[facts[answers:]])).sum(-1)
    return torch.zeros(len(essence), device=said.device).index_add(0, facts, torch.cat([nll, kl * drift]))


class _Adam:
    """Adam by rows: each fact has its own moments and takes its own steps."""

    def __init__(self, shape: torch.Size, device: torch.device, lr: float) -> None:
        self._first, self._second = torch.zeros(shape, device=device), torch.zeros(shape, device=device)
        self._steps, self._lr = 0, lr

    def step(self, slope: Tensor, rows: Tensor) -> Tensor:
        """What to take off these rows (all of which were in every earlier step)."""
        self._steps += 1
        self._first[rows] = _BETA_1 * self._first[rows] + (1 - _BETA_1) * slope
        self._second[rows] = _BETA_2 * self._second[rows] + (1 - _BETA_2) * slope**2
        first = self._first[rows] / (1 - _BETA_1**self._steps)
        second = self._second[rows] / (1 - _BETA_2**self._steps)
        return self._lr * first / (second.sqrt() + _EPS)


class _Model:
    """The part of the model above the place, as a function of δ."""

    def __init__(self, anatomy: Anatomy, place: Place, whole: bool) -> None:
        self._anatomy, self._place, self._whole = anatomy, place, whole

    def logits(self, batch: _Batch, delta: Tensor) -> Tensor:
        anatomy, place, below = self._anatomy, self._place, batch.below
        rows = torch.arange(len(batch.at), device=anatomy.device)
        shift = delta[batch.fact]

        def add(states: Tensor) -> Tensor:
            moved = states.clone()
            moved[rows, batch.at] += shift.to(states.dtype)
            return moved

        with ExitStack() as stack:
            if place.inside:
                stack.enter_context(anatomy.changing(anatomy.downs[place.layer], add))
            elif below is not None:
                below = add(below)
            if below is not None:
                stack.enter_context(anatomy.entered_after(_below(place), below, self._whole))
            stack.enter_context(anatomy.head_at(batch.rows, batch.columns))
            out = anatomy.forward(batch.ids, batch.mask, batch.positions, _fresh(batch.cache))
        return out.logits[0].float()


def _below(place: Place) -> int:
    """The last block that need not be computed again (−1: none)."""
    return place.layer - 1 if place.inside else place.layer


def _fresh(cache: Any) -> Any:
    """The same keys and values in a cache of its own, since a forward pass adds to it."""
    if cache is None:
        return None
    other = copy.copy(cache)
    other.layers = [copy.copy(layer) for layer in cache.layers]
    return other


@torch.no_grad()
def _first_pass(anatomy: Anatomy, batch: _Batch, place: Place) -> tuple[Tensor, Tensor, bool]:
    """What the untouched model gives: h of every fact, log p at its essence prompt, and the form of a block's output.

    Fills `batch.below`.
    """
    last, answers = _below(place), len(batch.targets)
    with ExitStack() as stack:
        inside = stack.enter_context(anatomy.catching(anatomy.downs[place.layer]))
        below = stack.enter_context(anatomy.catching(anatomy.blocks[max(last, 0)]))
        stack.enter_context(anatomy.head_at(batch.rows[answers:], batch.columns[answers:]))
        out = anatomy.forward(batch.ids, batch.mask, batch.positions, _fresh(batch.cache))
    assert inside.given is not None and below.given is not None
    batch.below = below.given if last >= 0 else None
    states = inside.given if place.inside else below.given
    facts = torch.arange(int(batch.fact[-1]) + 1, device=batch.fact.device)
    bare = torch.searchsorted(batch.fact, facts)  # the first row of each
    given = states[bare, batch.at[bare]].float()
    return given, torch.log_softmax(out.logits[0].float(), -1), below.whole


def _collate(anatomy: Anatomy, requests: Sequence[Request], *, cached: bool) -> _Batch:
    """The rows of all facts, each fact's essence prompt last; without a cache where the model's cannot be used."""
    texts = [row for request in requests for row in (*request.rows, request.essence)]
    cuts = [row.at if cached else 0 for row in texts]
    # The last token of an answer is said, never read.
    ends = [len(row.ids) - (1 if row.answer else 0) for row in texts]
    before, after = max(cuts), max(end - cut for end, cut in zip(ends, cuts, strict=True))
    earlier = torch.zeros(len(texts), before, dtype=torch.long)
    ids = torch.zeros(len(texts), after, dtype=torch.long)
    mask = torch.zeros(len(texts), before + after, dtype=torch.long)
    positions = torch.zeros(len(texts), after, dtype=torch.long)
    fact: list[int] = []
    turn: list[int] = []
    asked: list[tuple[int, int, int, float]] = []
    essences: list[tuple[int, int]] = []
    for number, request in enumerate(requests):
        for order, text in enumerate((*request.rows, request.essence)):
            row = len(fact)
            cut, end = cuts[row], ends[row]
            earlier[row, :cut] = torch.tensor(text.ids[:cut])
            ids[row, : end - cut] = torch.tensor(text.ids[cut:end])
            mask[row, :cut] = mask[row, before : before + end - cut] = 1
            positions[row] = torch.arange(cut, cut + after)
            share = 1 / (len(text.answer) * min(2, len(request.rows))) if text.answer else 0.0
            turn.append(order - 1 if 0 < order < len(request.rows) else ALWAYS)
            asked += [(row, text.start - 1 - cut + place, token, share) for place, token in enumerate(text.answer)]
            fact.append(number)
        essences.append((row, end - 1 - cut))
    device = anatomy.device
    cache = _remember(anatomy, earlier.to(device), before + after) if before else None
    if before and cache is None:
        return _collate(anatomy, requests, cached=False)
    rows = [row for row, *_ in asked] + [row for row, _ in essences]
    columns = [column for _, column, *_ in asked] + [column for _, column in essences]
    at = torch.tensor([text.at - cut for text, cut in zip(texts, cuts, strict=True)], device=device)
    mask, positions = mask.to(device), positions.to(device)
    return _Batch(
        ids.to(device), mask, positions, at, torch.tensor(fact, device=device), torch.tensor(turn, device=device),
        torch.tensor(rows, device=device), torch.tensor(columns, device=device),
        torch.tensor([token for _, _, token, _ in asked], device=device),
        torch.tensor([share for *_, share in asked], device=device), cache,
    )  # fmt: skip


@torch.no_grad()
def _remember(anatomy: Anatomy, ids: Tensor, width: int) -> Any:
    """Keys and values of the tokens before. No mask: a token's attention never sees the padding, which comes after it.

    None where a layer keeps a state (linear attention, a convolution), for the padding is in it, and rows cannot be chosen from
    it; and where a layer looks back over less than the whole `width`, for the padding would push a row's own tokens out of sight.
    """
    positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    with anatomy.head_at(torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long)):
        cache = anatomy.forward(ids, torch.ones_like(ids), positions, keep=True).past_key_values
    return cache if all(_keeps(layer, width) for layer in cache.layers) else None


def _keeps(layer: Any, width: int) -> bool:
    """Whether this part of a cache holds keys and values of that many tokens, each row its own."""
    attends = hasattr(layer, "batch_select_indices") and not hasattr(layer, "recurrent_states")
    return attends and getattr(layer, "sliding_window", width) >= width
