"""What a model has learned: its tasks, and how hard the pictures may be. Travels with the weights as difficulty.json."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .drawing import SCALES, Scene
from .tasks import TASKS, Example, ask

NAME = "difficulty.json"


@dataclass(frozen=True)
class Difficulty:
    """The pictures and questions that a model is asked. A stronger model brings a harder one, and no code changes.

    Attributes:
        tasks: Tasks it has learned.
        scales: Scales its pictures are drawn at.
        scene: Keyword arguments of `draw_scene` that differ from their defaults.
        questions: Keyword arguments of tasks that differ from their defaults, by task.
    """

    tasks: tuple[str, ...] = tuple(TASKS)
    scales: tuple[int, ...] = SCALES
    scene: dict[str, Any] = field(default_factory=dict)
    questions: dict[str, dict[str, Any]] = field(default_factory=dict)

    def ask(self, rng: np.random.Generator, scene: Scene, task: str) -> Example | None:
        """A question of `task` as hard as it may be, or None where the scene does not allow one."""
        return ask(rng, scene, task, **self.questions.get(task, {}))


def read_difficulty(directory: Path) -> Difficulty:
    """The difficulty saved next to some weights; everything where there is none."""
    path = directory / NAME
    if not path.exists():
        return Difficulty()
    data = json.loads(path.read_text())
    return Difficulty(tuple(data["tasks"]), tuple(data["scales"]), data["scene"], data["questions"])


def write_difficulty(difficulty: Difficulty, directory: Path) -> None:
    """Save a difficulty next to the weights that were trained for it."""
    (directory / NAME).write_text(json.dumps(dataclasses.asdict(difficulty), indent=2) + "\n")
