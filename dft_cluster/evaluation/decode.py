"""What a model says: the argmax at every answer position, and greedy decoding. Collective under ZeRO-3."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from dft_cluster.facts.layout import Example
from dft_cluster.training.batches import collate
from dft_cluster.training.losses import answer_logits, each_nll


@dataclass(frozen=True)
class Said:
    """A probe's outcome: the argmax at each answer position, and the answer's mean −log p per token."""

    predicted: tuple[int, ...]
    nll: float


@torch.no_grad()
def forced(model: Any, examples: Sequence[Example], pad: int, device: torch.device) -> list[Said]:
    """Teacher-forced: what comes out at each answer position when the answer so far is given."""
    batch = collate(examples, pad).to(device)
    logits = answer_logits(model, batch)
    sizes = [example.targets for example in examples]
    best = logits.argmax(-1).cpu().split(sizes)
    nll = each_nll(logits, batch.targets).cpu().split(sizes)
    return [Said(tuple(own.tolist()), float(each.mean())) for own, each in zip(best, nll, strict=True)]


@torch.no_grad()
def greedy(
    model: Any,
    prompts: Sequence[tuple[int, ...]],
    pad: int,
    device: torch.device,
    most: int,
    ends: Sequence[int],
    together: bool,
) -> list[tuple[int, ...]]:
    """Greedy continuations up to `most` tokens or one of `ends`; `together` keeps all ranks stepping until the last is done."""
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), pad)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    with _no_habits(model):
        out = model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            do_sample=False,
            num_beams=1,
            max_new_tokens=most,
            eos_token_id=list(ends) or None,
            pad_token_id=pad,
            synced_gpus=together,
        )[:, width:].cpu()
    return [_until(row, set(ends)) for row in out.tolist()]


@torch.no_grad()
def sampled(
    model: Any, begun: Sequence[tuple[int, ...]], pad: int, device: torch.device, most: int, seed: int, top: int | None,
    size: int, watch: Callable[[int], None] = lambda _done: None,
) -> list[tuple[int, ...]]:  # fmt: skip
    """Texts drawn from the model with a seed, `most` tokens each, among the `top` likeliest (None: among all), `size` at once."""
    found: dict[int, tuple[int, ...]] = {}
    torch.manual_seed(seed)
    with _no_habits(model):
        for length in sorted({len(ids) for ids in begun}):  # of one length at a time: no padding
            alike = [row for row, ids in enumerate(begun) if len(ids) == length]
            for first in range(0, len(alike), size):
                rows = alike[first : first + size]
                ids = torch.tensor([begun[row] for row in rows], device=device)
                out = model.generate(
                    input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=top or 0, top_p=1.0,
                    max_new_tokens=most, pad_token_id=pad, eos_token_id=None,
                )  # fmt: skip
                found |= {row: tuple(text) for row, text in zip(rows, out.tolist(), strict=True)}
                watch(len(found))
    return [found[row] for row in range(len(begun))]


@contextmanager
def _no_habits(model: Any) -> Iterator[None]:
    """Greedy is the plain argmax: what a model's own folder says of decoding (a repetition penalty, say) does not count."""
    own = model.generation_config
    model.generation_config = type(own)()
    try:
        yield
    finally:
        model.generation_config = own


def _until(ids: list[int], ends: set[int]) -> tuple[int, ...]:
    stop = next((place for place, token in enumerate(ids) if token in ends), len(ids))
    return tuple(ids[:stop])
