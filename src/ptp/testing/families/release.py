"""Descriptions of families that not every release of transformers can import."""

import importlib

from ..family import Family

NEEDS = {"gemma4": "5.21"}
"""Modules of this package, and the release of transformers from which on what they import is there (without torchvision)."""
missing: list[str] = []
"""Those of them that are not here."""


def described(module: str, *names: str) -> list[Family]:
    """The families that a module of this package describes; none where this release is too old for what it imports.

    Raises:
        ImportError: it cannot be imported, and `NEEDS` does not say why.
    """
    try:
        found = importlib.import_module(f".{module}", __package__)
    except ImportError:
        if module not in NEEDS:
            raise
        missing.append(module)
        return []
    return [getattr(found, name) for name in names]
