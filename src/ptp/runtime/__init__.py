"""Prefill pruning inside a running model: reading attention rows, shortening the sequence, compacting caches."""

from .cache import UnsupportedCacheError
from .engine import Engine
from .picture import Picture, Saliency
from .trace import ImageTrace, Trace

__all__ = ["Engine", "ImageTrace", "Picture", "Saliency", "Trace", "UnsupportedCacheError"]
