"""Accuracy, measured on pictures that no training saw."""

from .accuracy import Cell, Variant, evaluate, parse_variant

__all__ = ["Cell", "Variant", "evaluate", "parse_variant"]
