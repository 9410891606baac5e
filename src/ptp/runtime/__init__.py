"""Prefill pruning inside a running model: reading attention rows, shortening the sequence, compacting caches."""

from .cache import UnsupportedCacheError
from .engine import Engine
from .hooks import Shadow
from .picture import Picture, VisionSignal
from .prefill import Setup
from .reads import Reads, TextProbe, VisionRead
from .trace import ImageTrace, PrefillTrace, Trace

__all__ = [
    "Engine",
    "ImageTrace",
    "Picture",
    "PrefillTrace",
    "Reads",
    "Setup",
    "Shadow",
    "TextProbe",
    "Trace",
    "UnsupportedCacheError",
    "VisionRead",
    "VisionSignal",
]
