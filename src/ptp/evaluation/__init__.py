"""Accuracy, measured on pictures that no training saw."""

from .accuracy import Cell, Examiner, plan
from .samples import Sample, batches, draw_sample

__all__ = ["Cell", "Examiner", "Sample", "batches", "draw_sample", "plan"]
