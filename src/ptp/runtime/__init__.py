"""Prefill pruning inside a running model: reading attention rows, shortening the sequence, compacting caches."""

from .cache import UnsupportedCacheError
from .encoding import Savings
from .engine import Engine
from .hooks import Shadow
from .picture import Picture, VisionSignal
from .prefill import Setup
from .reads import Reads, TextProbe, VisionRead
from .reuse import EncoderCache
from .trace import EncoderTrace, ImageTrace, PrefillTrace, Trace

__all__ = [
    "EncoderCache",
    "EncoderTrace",
    "Engine",
    "ImageTrace",
    "Picture",
    "PrefillTrace",
    "Reads",
    "Savings",
    "Setup",
    "Shadow",
    "TextProbe",
    "Trace",
    "UnsupportedCacheError",
    "VisionRead",
    "VisionSignal",
]
