"""Which layers are edited: by rule, by causal tracing, or as the user says."""

from collections.abc import Sequence
from typing import Literal

from dft_cluster.errors import InputError

Wanted = Literal["auto", "trace", "all"] | Sequence[int]
SEVERAL = 5
"""Layers that MEMIT spreads an edit over."""


def check(wanted: Wanted, depth: int, most: int) -> None:
    """Refuses layers that the model does not have, or more of them than the method edits."""
    if wanted == "all":
        raise InputError("method.layers: all goes with ft_c; right for rome and memit would be auto, trace or a list")
    if isinstance(wanted, str):
        return
    if len(wanted) > most:
        raise InputError(f"method.layers: rome edits one layer (it is {list(wanted)}); right would be one, or memit")
    if not wanted or any(not 0 <= layer < depth for layer in wanted) or len(set(wanted)) < len(wanted):
        raise InputError(
            f"method.layers: {list(wanted)} of a model whose layers are 0 to {depth - 1}; "
            "right would be one or more of these, each once"
        )


def around(center: int, depth: int, count: int) -> list[int]:
    """So many neighbouring layers with this one in the middle, as far as the model has them."""
    count = min(count, depth)
    first = min(max(center - count // 2, 0), depth - count)
    return list(range(first, first + count))


def by_rule(depth: int, count: int) -> list[int]:
    """`auto`: around a fifth of the depth, in the early half where the MLPs recall what belongs to a subject and where a change
    can still be read by the attention above; layers 3 to 8 of GPT-J's 28, which MEMIT's authors edit, lie there too."""
    return around(round(0.2 * depth), depth, count)


def by_effect(effects: Sequence[float], count: int) -> list[int]:
    """The layer of the largest indirect effect, or those around it."""
    return around(max(range(len(effects)), key=lambda layer: (effects[layer], -layer)), len(effects), count)
