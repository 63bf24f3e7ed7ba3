"""Causal tracing (Meng et al. 2022): in which layers the MLPs recall what a model knows of a subject.

The embeddings of the subject's tokens are disturbed by noise (`NOISE` standard deviations of the embedding matrix, scaled as
the model scales what it looks up there), so that the model's answer, its likeliest next token, becomes unlikely. Then, for
each layer, the outputs of the MLPs in a window around it are set back, at the subject's last token, to what they were. The
indirect effect of a layer is the probability of the answer that this brings back.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from dft_cluster.editing.anatomy import Anatomy

NOISE = 3.0
FACTS = 20
"""Facts that are traced, at most."""
DRAWS = 3
"""Noises for each."""
LITTLE = 0.005
"""An indirect effect below this says nothing of where to edit."""


@dataclass(frozen=True)
class Asked:
    """A prompt's tokens, and the first and the last token of its subject."""

    ids: tuple[int, ...]
    first: int
    last: int
    seed: int
    """Of its noise: the same on whichever rank it is traced."""


def window(layers: int) -> int:
    """MLPs set back together: 10 of GPT-2 XL's 48, and in proportion."""
    return max(1, round(layers * 10 / 48))


@torch.no_grad()
def indirect_effects(anatomy: Anatomy, asked: Sequence[Asked]) -> list[float]:
    """The indirect effect of each layer, added up over the prompts."""
    depth = len(anatomy.blocks)
    total = torch.zeros(depth)
    with anatomy.frozen():
        for one in asked:
            total += _of_one(anatomy, one)
    return total.tolist()


def _of_one(anatomy: Anatomy, asked: Asked) -> Tensor:
    """All draws of noise side by side."""
    depth, span = len(anatomy.blocks), window(len(anatomy.blocks))
    ids = torch.tensor([asked.ids] * DRAWS, device=anatomy.device)
    real = torch.ones_like(ids)
    positions = torch.arange(ids.shape[1], device=anatomy.device).expand_as(ids)
    each = torch.arange(DRAWS, device=anatomy.device)
    last = torch.full_like(each, ids.shape[1] - 1)

    def answer() -> Tensor:
        with anatomy.head_at(each, last):
            return anatomy.forward(ids, real, positions).logits[0].float().softmax(-1)

    with ExitStack() as stack:
        clean = [stack.enter_context(anatomy.catching(down)) for down in anatomy.downs]
        said = answer()
    token = int(said[0].argmax())
    with _disturbed(anatomy, asked):
        with ExitStack() as stack:
            states = [stack.enter_context(anatomy.catching(block)) for block in anatomy.blocks]
            disturbed = answer()[:, token]
        effects = torch.zeros(depth)
        for layer in range(depth):
            begin = max(0, min(layer - span // 2, depth - span))
            with ExitStack() as stack:
                for place in range(begin, begin + span):
                    given = clean[place].given
                    assert given is not None
                    back = _setting(given[:, asked.last], asked.last)
                    stack.enter_context(anatomy.changing(anatomy.downs[place], back))
                if begin:
                    before = states[begin - 1]
                    assert before.given is not None
                    stack.enter_context(anatomy.entered_after(begin - 1, before.given, before.whole))
                effects[layer] = (answer()[:, token] - disturbed).mean()
    return effects


def _setting(value: Tensor, place: int) -> Callable[[Tensor], Tensor]:
    def put(states: Tensor) -> Tensor:
        states = states.clone()
        states[:, place] = value
        return states

    return put


@contextmanager
def _disturbed(anatomy: Anatomy, asked: Asked) -> Iterator[None]:
    weight: Tensor = anatomy.embedding.weight  # type: ignore[assignment]
    generator = torch.Generator().manual_seed(asked.seed)
    size = asked.last - asked.first + 1
    noise = torch.randn(DRAWS, size, weight.shape[1], generator=generator).to(weight)
    ids = torch.tensor(asked.ids, device=anatomy.device)
    scale = anatomy.embedding(ids).float().norm() / weight[ids].float().norm()  # Gemma's multiplies by √hidden
    noise *= NOISE * weight.std() * scale.to(weight.dtype)

    def add(states: Tensor) -> Tensor:
        states = states.clone()
        states[:, asked.first : asked.last + 1] += noise
        return states

    with anatomy.changing(anatomy.embedding, add):
        yield
