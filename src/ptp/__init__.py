"""Pyramid Token Pruning: training-free pruning of visual tokens for vision-language models in plain transformers."""

from .errors import UnsupportedModelError
from .loader import load
from .methods import METHODS, PyramidPruner, RandomPruner
from .pruner import Handle, Pruner, Stage, attach
from .runtime import ImageTrace, Trace, UnsupportedCacheError

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "Handle",
    "ImageTrace",
    "Pruner",
    "PyramidPruner",
    "RandomPruner",
    "Stage",
    "Trace",
    "UnsupportedCacheError",
    "UnsupportedModelError",
    "attach",
    "load",
]
