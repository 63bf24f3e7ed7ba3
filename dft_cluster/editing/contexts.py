"""Prefixes that the model itself says: before a prompt they show which part of a state belongs to the subject."""

from collections.abc import Sequence

import torch

from dft_cluster.editing.anatomy import Anatomy
from dft_cluster.facts.layout import Layout

OPENINGS = ("The", "Therefore", "Because", "I", "You")
TOP = 5
"""Each next token is drawn from so many of the likeliest."""


def openings(layout: Layout) -> list[tuple[int, ...]]:
    """The first tokens of the prefixes, in turn."""
    bare = Layout(layout.tokenizer, "plain", eos=False)
    return [bare.prompt(word) for word in OPENINGS]


@torch.no_grad()
def sample(anatomy: Anatomy, begin: Sequence[Sequence[int]], count: int, tokens: int, seed: int) -> list[list[int]]:
    """`count` texts of so many tokens after their opening, drawn with the seed; all at once."""
    drawn: list[list[int]] = [list(begin[i % len(begin)]) for i in range(count)]
    generator = torch.Generator().manual_seed(seed)
    with anatomy.frozen():
        lengths = [len(text) for text in drawn]
        for length in sorted(set(lengths)):
            chosen = [row for row in range(count) if lengths[row] == length]
            for row, text in zip(
                chosen, _continue(anatomy, [drawn[r] for r in chosen], tokens, generator), strict=True
            ):
                drawn[row] = text
    return drawn


def _continue(anatomy: Anatomy, texts: list[list[int]], tokens: int, generator: torch.Generator) -> list[list[int]]:
    """Texts of one length, grown token by token on a cache."""
    new, cache = torch.tensor(texts), None
    mask = torch.ones(len(texts), 0, dtype=torch.long, device=anatomy.device)
    rows = torch.arange(len(texts), device=anatomy.device)
    for _ in range(tokens):
        positions = (mask.shape[1] + torch.arange(new.shape[1], device=anatomy.device)).expand_as(new)
        mask = torch.cat([mask, torch.ones_like(new, device=anatomy.device)], dim=1)
        with anatomy.head_at(rows, torch.full_like(rows, new.shape[1] - 1)):
            out = anatomy.forward(new.to(anatomy.device), mask, positions, cache, keep=True)
        cache = out.past_key_values
        likeliest = out.logits[0].float().cpu().topk(min(TOP, out.logits.shape[-1]))
        chosen = torch.multinomial(likeliest.values.softmax(-1), 1, generator=generator)
        new = likeliest.indices.gather(1, chosen)
        for text, token in zip(texts, new[:, 0].tolist(), strict=True):
            text.append(token)
    return texts


def as_text(layout: Layout, drawn: Sequence[Sequence[int]]) -> list[str]:
    """The prefixes as one line each."""
    return [" ".join(layout.text(ids).split()) for ids in drawn]
