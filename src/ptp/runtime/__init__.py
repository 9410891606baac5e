"""Prefill pruning inside a running model: reading attention rows, shortening the sequence, compacting caches."""

from .cache import UnsupportedCacheError
from .engine import Engine
from .picture import Picture, Saliency
from .prefill import Setup
from .trace import ImageTrace, PrefillTrace, Trace

__all__ = ["Engine", "ImageTrace", "Picture", "PrefillTrace", "Saliency", "Setup", "Trace", "UnsupportedCacheError"]
