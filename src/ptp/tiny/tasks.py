"""The picture tasks: questions about a `Scene`, each with its one right answer."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .drawing import Scene, Sign


@dataclass(frozen=True)
class Example:
    """A question about a picture, its answer, and the sign that holds the evidence."""

    task: str
    question: str
    answer: str
    sign: Sign


READ_QUESTIONS = (
    "What is on the {color} {shape}?",
    "What is written on the {color} {shape}?",
    "Read the {color} {shape}.",
)
COLOR_QUESTIONS = (
    "What color is the sign with {label}?",
    "What color is sign {label}?",
    "Name the color of sign {label}.",
)


def read(rng: np.random.Generator, sign: Sign) -> Example:
    """Read the label on a sign named by colour and shape."""
    template = READ_QUESTIONS[rng.integers(len(READ_QUESTIONS))]
    return Example("read", template.format(color=sign.color, shape=sign.shape), sign.label, sign)


def color(rng: np.random.Generator, sign: Sign) -> Example:
    """Name the colour of the sign with a given label."""
    template = COLOR_QUESTIONS[rng.integers(len(COLOR_QUESTIONS))]
    return Example("color", template.format(label=sign.label), sign.color, sign)


TASKS: dict[str, Callable[[np.random.Generator, Sign], Example]] = {"read": read, "color": color}


def ask(rng: np.random.Generator, scene: Scene, task: str) -> Example:
    """One random question of `task` about `scene`.

    Raises:
        ValueError: `task` is unknown.
    """
    if task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {task!r}. Choose one of these.")
    return TASKS[task](rng, scene.signs[rng.integers(len(scene.signs))])
