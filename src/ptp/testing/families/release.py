"""Descriptions of families that not every release of transformers can import."""

import importlib

import transformers
from packaging.version import Version

from ..family import Family

NEEDS = {"gemma4": "5.21", "minicpmv4_6": "5.19"}
"""Modules of this package, and the release of transformers from which on their family works: Gemma 4's was not there without
torchvision before, MiniCPM-V's took slices of one size only."""
missing: list[str] = []
"""Those of them that are not here."""


def described(module: str, *names: str) -> list[Family]:
    """The families that a module of this package describes; none where this release is too old for them."""
    if Version(transformers.__version__) < Version(NEEDS[module]):
        missing.append(module)
        return []
    found = importlib.import_module(f".{module}", __package__)
    return [getattr(found, name) for name in names]
