"""Delicate Fine-Tuning: change what a large language model knows, as a distributed training job."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dft_cluster.local import Updated, update

__all__ = ["Updated", "update"]


def __getattr__(name: str) -> Any:
    """Loads the training stack when it is asked for: the patch tools work without it."""
    if name in __all__:
        import importlib

        return getattr(importlib.import_module("dft_cluster.local"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
