"""Pyramid Token Pruning: training-free pruning of visual tokens for vision-language models in plain transformers."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import UnsupportedModelError
    from .loader import load
    from .methods import METHODS, PyramidPruner, RandomPruner
    from .pruner import Handle, Pruner, Stage, attach
    from .runtime import EncoderCache, ImageTrace, Picture, Reads, TextProbe, Trace, UnsupportedCacheError, VisionRead
    from .selection import Selection
    from .tuning import load_pruner

__version__ = "0.2.0"

__all__ = [
    "METHODS",
    "EncoderCache",
    "Handle",
    "ImageTrace",
    "Picture",
    "Pruner",
    "PyramidPruner",
    "RandomPruner",
    "Reads",
    "Selection",
    "Stage",
    "TextProbe",
    "Trace",
    "UnsupportedCacheError",
    "UnsupportedModelError",
    "VisionRead",
    "attach",
    "load",
    "load_pruner",
]

_HOMES = {
    "errors": ("UnsupportedModelError",),
    "loader": ("load",),
    "methods": ("METHODS", "PyramidPruner", "RandomPruner"),
    "pruner": ("Handle", "Pruner", "Stage", "attach"),
    "runtime": ("EncoderCache", "ImageTrace", "Picture", "Reads", "TextProbe", "Trace", "UnsupportedCacheError", "VisionRead"),
    "selection": ("Selection",),
    "tuning": ("load_pruner",),
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: torch and transformers take seconds, and Ctrl-C need not wait for them."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
