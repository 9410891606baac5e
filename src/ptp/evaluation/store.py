"""The file of an evaluation: finished cells and the settings they were made with, so that a run can be resumed."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from .accuracy import Cell


def read_cells(path: Path, settings: dict[str, Any]) -> list[Cell]:
    """The finished cells of an earlier run; none where there is no file.

    Args:
        settings: Of the run that is to go on, as JSON can hold them.

    Raises:
        ValueError: the file is no evaluation, or was made with other settings.
    """
    if not path.exists():
        return []
    try:
        data = json.loads(path.read_text())
        theirs, cells = data["settings"], [Cell(**cell) for cell in data["cells"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{str(path)!r} is not the file of an evaluation. Pass --force to overwrite it.") from error
    for name in settings:
        if theirs.get(name) != settings[name]:
            raise ValueError(
                f"{str(path)!r} was made with {name} {theirs.get(name)!r}, not {settings[name]!r}, and cannot be resumed. "
                "Choose another --out, or pass --force to overwrite it."
            )
    return cells


def to_json(about: dict[str, Any], settings: dict[str, Any], cells: list[Cell], table: list[dict[str, Any]]) -> str:
    """The file's text: provenance, settings, summary and every cell, a cell a line."""
    head = {"about": about, "settings": settings, "rows": table}
    lines = ",\n".join(json.dumps(dataclasses.asdict(cell)) for cell in cells)
    return json.dumps(head, indent=1)[:-2] + f',\n "cells": [\n{lines}\n ]\n}}\n'
