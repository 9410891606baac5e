"""Prefill pruning inside a running model: reading attention rows, shortening the sequence, compacting caches."""

from .engine import Engine, UnsupportedCacheError
from .picture import Picture
from .trace import ImageTrace, Trace

__all__ = ["Engine", "ImageTrace", "Picture", "Trace", "UnsupportedCacheError"]
