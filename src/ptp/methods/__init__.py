"""Pruning methods by name."""

from ..pruner import Pruner
from .pyramid import PyramidPruner
from .random import RandomPruner

METHODS: dict[str, type[Pruner]] = {"pyramid": PyramidPruner, "random": RandomPruner}

__all__ = ["METHODS", "PyramidPruner", "RandomPruner"]
