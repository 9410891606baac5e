"""Accuracy, measured on pictures that no training saw."""

from .accuracy import Cell, Examiner, plan
from .contenders import Contender, parse_contender
from .samples import Sample, batches, draw_sample

__all__ = ["Cell", "Contender", "Examiner", "Sample", "batches", "draw_sample", "parse_contender", "plan"]
