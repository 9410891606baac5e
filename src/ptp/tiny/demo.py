"""The demo pictures: ``python -m ptp.tiny.demo DIR`` draws them again, pixel for pixel."""

import itertools
import json
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import typer
from PIL import Image

from . import WEIGHTS
from .difficulty import read_difficulty
from .drawing import HELD_OUT_PHOTOS, draw_scene
from .tasks import Example

SEED = 2509_15704
SCALE = 3
GRIDS = ((4, 3), (4, 3), (3, 4))
QUESTIONS_EACH = 3


@dataclass(frozen=True)
class DemoQuestion:
    """A question about one of the demo pictures, with its right answer."""

    picture: str
    question: str
    answer: str


def draw(directory: Path) -> None:
    """Draw the demo pictures (photographs that training never saw) and write their questions."""
    difficulty = read_difficulty(WEIGHTS)
    asked = itertools.cycle(difficulty.tasks)
    questions = []
    for number, grid in enumerate(GRIDS, 1):
        rng = np.random.default_rng([SEED, number])
        photo = HELD_OUT_PHOTOS[number % len(HELD_OUT_PHOTOS)]
        name = f"{photo}_{number}.jpg"
        tasks = [next(asked) for _ in range(min(QUESTIONS_EACH, len(difficulty.tasks)))]
        examples: list[Example | None] = [None]
        while None in examples:
            options = {"texture_share": 0.0, "clustered": 0.0, "scale": SCALE, **difficulty.scene}
            scene = draw_scene(rng, grid, (photo,), **options)
            examples = [difficulty.ask(rng, scene, task) for task in tasks]
        scene.image.save(directory / name, quality=85, optimize=True)
        questions += [DemoQuestion(name, example.question, example.answer) for example in examples if example]
    text = json.dumps([asdict(question) for question in questions], indent=2)
    (directory / "questions.json").write_text(text + "\n")


def load_demo() -> tuple[dict[str, Image.Image], list[DemoQuestion]]:
    """The pictures that ship with the package, by name, and the questions about them."""
    folder = resources.files("ptp.tiny").joinpath("demo_pictures")
    questions = [DemoQuestion(**entry) for entry in json.loads(folder.joinpath("questions.json").read_text())]
    pictures = {}
    for name in dict.fromkeys(question.picture for question in questions):
        with folder.joinpath(name).open("rb") as file:
            pictures[name] = Image.open(file).convert("RGB")
    return pictures, questions


if __name__ == "__main__":
    typer.run(draw)
