"""`ptp tune`: how few tokens can be kept on this model and these pictures, and by what method. No labels needed."""

from .tuned import load_pruner

__all__ = ["load_pruner"]
