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
        theirs, cells = data["settings"], load_cells(data)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{str(path)!r} is not the file of an evaluation. Pass --force to overwrite it.") from error
    for name in settings:
        if theirs.get(name) != settings[name]:
            raise ValueError(
                f"{str(path)!r} was made with {name} {theirs.get(name)!r}, not {settings[name]!r}, and cannot be resumed. "
                "Choose another --out, or pass --force to overwrite it."
            )
    return cells


def load_cells(data: dict[str, Any]) -> list[Cell]:
    """The cells of an evaluation's parsed file."""
    return [_unpack(cell, data["answers"]) for cell in data["cells"]]


def to_json(about: dict[str, Any], settings: dict[str, Any], cells: list[Cell], table: list[dict[str, Any]]) -> str:
    """The file's text: provenance, settings, summary, each task's right answers, and every cell, a cell a line."""
    head = {"about": about, "settings": settings, "rows": table}
    answers = _compact({cell.task: cell.answers for cell in cells})
    lines = ",\n".join(_compact(_pack(cell)) for cell in cells)
    return json.dumps(head, indent=1)[:-2] + f',\n "answers": {answers},\n "cells": [\n{lines}\n ]\n}}\n'


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _pack(cell: Cell) -> dict[str, Any]:
    """A cell without the task's right answers, which all its cells share; right and wrong as 1 and 0."""
    packed = dataclasses.asdict(cell) | {"right": "".join("01"[right] for right in cell.right)}
    del packed["answers"]
    return packed


def _unpack(packed: dict[str, Any], answers: dict[str, list[str]]) -> Cell:
    right = [letter == "1" for letter in packed["right"]]
    return Cell(**{**packed, "right": right, "answers": answers[packed["task"]]})
