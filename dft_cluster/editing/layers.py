"""Which layers are edited: by rule, by causal tracing, or as the user says."""

from collections.abc import Sequence
from typing import Literal

from dft_cluster.errors import InputError

Wanted = Literal["auto", "trace", "all"] | Sequence[int]
SEVERAL = 5
"""Layers that MEMIT spreads an edit over."""


def check(wanted: Wanted, depth: int, most: int) -> None:
    """Refuses layers that the model does not have, more of them than the method edits, and the last one."""
    if wanted == "all":
        raise InputError("method.layers: all goes with ft_c; right for rome and memit would be auto, trace or a list")
    if depth < 2:
        raise InputError(
            "model.name: rome and memit edit a block whose output at the subject the blocks above read, and this model has one "
            "block alone; right would be a deeper model, or a method that trains"
        )
    if isinstance(wanted, str):
        return
    if len(wanted) > most:
        raise InputError(f"method.layers: rome edits one layer (it is {list(wanted)}); right would be one, or memit")
    if not wanted or any(not 0 <= layer < depth for layer in wanted) or len(set(wanted)) < len(wanted):
        raise InputError(
            f"method.layers: {list(wanted)} of a model whose layers are 0 to {depth - 1}; "
            f"right would be one or more of 0 to {depth - 2}, each once"
        )
    if depth - 1 in wanted:
        raise InputError(
            f"method.layers: {depth - 1} is the last block, and no attention above it reads what it gives at the subject: an "
            f"edit there leaves what a prompt says further on as it was. Right would be one or more of 0 to {depth - 2}"
        )


def around(center: int, depth: int, count: int) -> list[int]:
    """So many neighbouring layers with this one in the middle, as far as the model has them below its last block, whose output
    at the subject nothing reads."""
    below = depth - 1
    count = min(count, below)
    first = min(max(center - count // 2, 0), below - count)
    return list(range(first, first + count))


def by_rule(depth: int, count: int) -> list[int]:
    """`auto`: around a fifth of the depth, in the early half where the MLPs recall what belongs to a subject and where a change
    can still be read by the attention above; layers 3 to 8 of GPT-J's 28, which MEMIT's authors edit, lie there too."""
    return around(round(0.2 * depth), depth, count)


def strongest(effects: Sequence[float]) -> int:
    """The layer of the largest indirect effect, of those below the last block."""
    return max(range(len(effects) - 1), key=lambda layer: (effects[layer], -layer))


def by_effect(effects: Sequence[float], count: int) -> list[int]:
    """The layer of the largest indirect effect, or those around it."""
    return around(strongest(effects), len(effects), count)
