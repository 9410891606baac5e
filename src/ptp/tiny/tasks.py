"""The picture tasks: questions about a `Scene`, each with its one right answer.

They mirror what public benchmarks ask: `read` TextVQA; `color` and `shape` GQA; `exists` POPE, with hard negatives;
`count` and `relation` RealWorldQA; `table` ChartQA and DocVQA; `tiny_text` InfoVQA.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .drawing import COLORS, LABELS, LETTERS, SHAPES, TAG_COLORS, Box, Scene, Sign, tile_of

RELATIONS = ("left of", "above")

QUESTIONS: dict[str, tuple[str, ...]] = {
    "read": ("What is on the {color} {shape}?", "What is written on the {color} {shape}?", "Read the {color} {shape}."),
    "color": ("What color is the sign with {label}?", "What color is sign {label}?", "Name the color of sign {label}."),
    "shape": ("What shape is the sign with {label}?", "What shape is sign {label}?", "Name the shape of sign {label}."),
    "exists": ("Is there a {color} {shape}?", "Is a {color} {shape} in the picture?"),
    "count": ("How many {color} signs are there?", "Count the {color} signs."),
    "relation": ("Is {label} {relation} {other}?", "Is sign {label} {relation} sign {other}?"),
    "table": ("What is the value of {key}?", "Look up {key} in the table."),
    "tiny_text": ("What is on the {tag} tag?", "Read the {tag} tag."),
}
"""Every wording of every task; the tokenizer is trained on these."""

WORDS: dict[str, tuple[str, ...]] = {
    "color": tuple(COLORS),
    "shape": SHAPES,
    "label": LABELS,
    "other": LABELS,
    "key": LETTERS,
    "relation": ("left of", "right of", "above", "below"),
    "tag": tuple(TAG_COLORS),
}
"""What may stand in each gap of a question (the tokenizer knows more relations than are asked)."""


@dataclass(frozen=True)
class Example:
    """A question about a picture, its answer, and the boxes that hold the evidence (none for "there is none")."""

    task: str
    question: str
    answer: str
    evidence: tuple[Box, ...]


Filled = tuple[dict[str, str], str, tuple[Box, ...]]
"""What a task fills into its question, the answer, the evidence."""


def _any(rng: np.random.Generator, signs: tuple[Sign, ...]) -> Sign:
    return signs[rng.integers(len(signs))]


def read(rng: np.random.Generator, scene: Scene) -> Filled | None:
    """Read the label on a sign named by colour and shape."""
    sign = _any(rng, scene.signs)
    return {"color": sign.color, "shape": sign.shape}, sign.label, (sign.box,)


def color(rng: np.random.Generator, scene: Scene) -> Filled | None:
    """Name the colour of the sign with a given label."""
    sign = _any(rng, scene.signs)
    return {"label": sign.label}, sign.color, (sign.box,)


def shape(rng: np.random.Generator, scene: Scene) -> Filled | None:
    """Name the shape of the sign with a given label."""
    sign = _any(rng, scene.signs)
    return {"label": sign.label}, sign.shape, (sign.box,)


def exists(rng: np.random.Generator, scene: Scene) -> Filled | None:
    """Say whether there is a sign of a colour and shape.

    Half of the answers are no; of two thirds of these, colour and shape are both there, on different signs.
    """
    there = {(sign.color, sign.shape): sign.box for sign in scene.signs}
    near = sorted({(c, s) for (c, _), (_, s) in itertools.product(there, there)} - set(there))
    far = sorted(set(itertools.product(COLORS, SHAPES)) - set(there) - set(near))
    kind = rng.random()
    looks = list(there) if kind < 1 / 2 else near if kind < 5 / 6 else far
    if not looks:
        return None
    yes = looks[0] in there
    look = looks[rng.integers(len(looks))]
    return {"color": look[0], "shape": look[1]}, "yes" if yes else "no", (there[look],) if yes else ()


def count(rng: np.random.Generator, scene: Scene) -> Filled | None:
    """Count the signs of a colour: half of the questions are about the most frequent one, a quarter about none."""
    boxes = {name: tuple(sign.box for sign in scene.signs if sign.color == name) for name in COLORS}
    most = max(len(found) for found in boxes.values())
    kind = rng.random()
    if kind < 0.5:
        names = [name for name in COLORS if len(boxes[name]) == most]
    else:
        names = [name for name in COLORS if bool(boxes[name]) == (kind < 0.75) and len(boxes[name]) < most]
    if not names:
        return None
    name = names[rng.integers(len(names))]
    return {"color": name}, str(len(boxes[name])), boxes[name]


def relation(rng: np.random.Generator, scene: Scene, relations: Sequence[str] = RELATIONS) -> Filled | None:
    """Say whether one of two signs of the same tile is left of, or above, the other."""
    columns = scene.grid[0]
    pairs = [
        (a, b, axis)
        for a, b in itertools.permutations(scene.signs, 2)
        for axis in map(RELATIONS.index, relations)
        if tile_of(a.box, columns) == tile_of(b.box, columns)
        and (a.box[2 + axis] <= b.box[axis] or b.box[2 + axis] <= a.box[axis])
    ]
    if not pairs:
        return None
    a, b, axis = pairs[rng.integers(len(pairs))]
    filled = {"label": a.label, "other": b.label, "relation": RELATIONS[axis]}
    return filled, "yes" if a.box[axis] < b.box[axis] else "no", (a.box, b.box)


def table(rng: np.random.Generator, scene: Scene) -> Filled | None:
    """Look up a digit in the table by its letter."""
    if scene.table is None:
        return None
    row = int(rng.integers(len(scene.table.rows)))
    key, value = scene.table.rows[row]
    return {"key": key}, value, (scene.table.row_box(row),)


def tiny_text(rng: np.random.Generator, scene: Scene) -> Filled | None:
    """Read a tag named by its colour: too small for the thumbnail."""
    if not scene.tags:
        return None
    tag = _any(rng, scene.tags)
    return {"tag": tag.color}, tag.label, (tag.box,)


TASKS: dict[str, Callable[..., Filled | None]] = {
    task.__name__: task for task in (read, color, shape, exists, count, relation, table, tiny_text)
}


def ask(rng: np.random.Generator, scene: Scene, task: str, **settings: Any) -> Example | None:
    """One random question of `task` about `scene`, or None where the scene does not allow one.

    Args:
        settings: Keyword arguments of the task, which make it easier.

    Raises:
        ValueError: `task` is unknown.
    """
    if task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {task!r}. Choose one of these.")
    template = QUESTIONS[task][rng.integers(len(QUESTIONS[task]))]
    filled = TASKS[task](rng, scene, **settings)
    return filled and Example(task, template.format(**filled[0]), filled[1], filled[2])


def every_question() -> list[str]:
    """All questions there are, for the tokenizer."""
    questions = []
    for template in itertools.chain.from_iterable(QUESTIONS.values()):
        gaps = [name for name in WORDS if f"{{{name}}}" in template]
        if "other" in gaps:  # pairs of labels add nothing but number
            gaps.remove("other")
        for words in itertools.product(*(WORDS[name] for name in gaps)):
            questions.append(template.format(**dict(zip(gaps, words, strict=True)), other=words[0]))
    return questions
