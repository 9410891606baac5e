"""The embedded model ``ptp-tiny``: its weights, its recipe and the pictures it is asked about."""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
"""The embedded model's checkpoint directory."""
