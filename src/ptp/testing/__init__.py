"""Small models of every family, and `check_adapter`: whether an adapter, of this package or of your own, prunes exactly."""

from .check import check_adapter
from .families import FAMILIES, Family, Scale, register_family, token_id, tokenizer
from .report import Check, CheckFailed, Report
from .small import SIZES, SMALL, WIDER, photo, sharpen, small_model, small_processor

__all__ = [
    "FAMILIES",
    "SIZES",
    "SMALL",
    "WIDER",
    "Check",
    "CheckFailed",
    "Family",
    "Report",
    "Scale",
    "check_adapter",
    "photo",
    "register_family",
    "sharpen",
    "small_model",
    "small_processor",
    "token_id",
    "tokenizer",
]
