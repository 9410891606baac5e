"""What `ptp-tiny` is taught on: the curriculum, and batches of pictures with their labels and packed questions."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from .drawing import CELL, COLORS, DIGITS, GRIDS, LABELS, SHAPES, TAG, TAG_COLORS, TILE, Box, Scene, draw_scene, tile_of
from .model import IMAGE_MEAN, IMAGE_STD
from .tasks import RELATIONS, TASKS, Example, ask

QUESTIONS = 12
BLOCK = 16
CELLS = TILE // CELL
NAMES = {"color": (*COLORS, *TAG_COLORS), "shape": (*SHAPES, TAG, "table"), "label": LABELS, "value": DIGITS}
"""What each visual token is taught to name; 0 stands for nothing. The value is the one a table's letter stands for."""
THINGS = (*((color, shape) for color in COLORS for shape in SHAPES), *((color, TAG) for color in TAG_COLORS), ("", "table"))
"""What a view is taught to name."""
TRAIN_SCALES = (1, 1, 2)
"""Evaluation draws three times as large, too, which takes longest."""


@dataclass(frozen=True)
class Phase:
    """One leg of the curriculum.

    Attributes:
        steps: Optimizer steps.
        answers: Whether the language model learns; before, encoder, projector and embeddings do.
        tiles: Tiles of the largest picture.
        signs: Least and most signs on a picture; many teach the encoder more per picture.
        step: Signs sit on multiples of this many pixels.
        labels: How many labels are in use.
        extra: Tasks (or "where") asked once more of every picture, as often as they stand here.
        tasks: Tasks that are asked.
        questions: Questions about a picture, packed into one sequence.
        tags: Tags on a picture.
        table: Whether there is a table on it.
        grids: Tile grids (columns, rows) of its pictures, those of more than `tiles` left out.
        scales: Scales that its pictures are drawn at, those named twice twice as often.
        repeated: Share of the pictures with several signs of one color, which only their shapes tell apart.
    """

    steps: int
    answers: bool
    tiles: int
    signs: tuple[int, int]
    step: int = 7
    labels: int = len(LABELS)
    extra: tuple[str, ...] = ()
    tasks: tuple[str, ...] = tuple(TASKS)
    questions: int = QUESTIONS
    tags: int = 2
    table: bool = True
    grids: tuple[tuple[int, int], ...] = GRIDS
    scales: tuple[int, ...] = TRAIN_SCALES
    repeated: float = 0.8


CURRICULUM = (
    Phase(980, False, 4, (8, 16), step=14),
    Phase(1820, False, 4, (8, 16)),
    Phase(1400, False, 12, (4, 16)),
    Phase(1400, True, 4, (2, 5), labels=10),
    Phase(1400, True, 4, (2, 7), labels=18),
    Phase(840, True, 6, (2, 7), labels=18, extra=("where", "where", "relation", "relation", "exists")),
    Phase(910, True, 6, (2, 7), extra=("where", "relation", "exists")),
    Phase(3000, True, 6, (2, 7), extra=("where", *5 * ("relation",), "exists", "count")),
    Phase(250, True, 12, (4, 7), extra=(*4 * ("relation",), "exists", "count")),
    Phase(2000, True, 12, (4, 7), extra=("relation", "exists", *3 * ("count",))),
)
"""Few labels come first: a question that names a label ("What color is sign K?") has to find it among the visual tokens, and
with all 34 from the start the language model had not found out how after 2,000 steps; with ten first it had after 1,000.
Relations stayed at chance for 2,500 steps while everything else was learned: to compare two places, a place has to be looked
up, which no task asks for. The extra question "where" does. What is learned last is asked most."""


def phase_at(step: int, steps: int) -> Phase:
    """The leg of the curriculum that `step` of `steps` falls into; other numbers of steps stretch it."""
    whole, done = sum(phase.steps for phase in CURRICULUM), 0
    for phase in CURRICULUM:
        done += phase.steps
        if step * whole < done * steps:
            return phase
    return CURRICULUM[-1]


@dataclass
class Lesson:
    """Pictures of one grid and the packed questions about them."""

    scenes: list[Scene]
    blocks: Tensor  # (B, questions, BLOCK) token ids
    answers: Tensor  # (B, questions) index of the first answer token in its block
    tasks: list[list[str]]


@dataclass
class Batch:
    """Pictures of one grid: tiles (B, T, 3, 112, 112) with the thumbnail last, their labels, packed questions."""

    pixels: Tensor
    tokens: Tensor  # (B, T - 1, 16, NAMES) what covers the token; 0 = nothing, -100 = ignored
    centers: Tensor  # (B, T - 1, 16) 1 where a sign or tag has its middle: what can be counted
    views: Tensor  # (B, T, THINGS + LABELS) what is in view
    thumbnail: Tensor  # (B, 16, THINGS) which sign, tag or table has its middle there
    blocks: Tensor  # (B, questions, BLOCK) token ids
    answers: Tensor  # (B, questions) index of the first answer token in its block
    tasks: list[list[str]]


def cut(scene: Scene) -> np.ndarray:
    """(T, 112, 112, 3) uint8 tiles in raster order, the thumbnail last: what the processor makes of the picture."""
    columns, rows = scene.grid
    image = scene.image
    thumbnail = np.asarray(image.resize((TILE, TILE), resample=Image.Resampling.BICUBIC))
    if image.size != (size := (TILE * columns, TILE * rows)):
        image = image.resize(size, resample=Image.Resampling.BICUBIC)
    canvas = np.asarray(image).reshape(rows, TILE, columns, TILE, 3).swapaxes(1, 2)
    return np.concatenate([canvas.reshape(-1, TILE, TILE, 3), thumbnail[None]])


def label(scene: Scene) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What the encoder should see: per token of each tile (names and middles), per view, per token of the thumbnail."""
    columns, rows = scene.grid
    tiles = columns * rows
    tokens = np.zeros((tiles, CELLS * CELLS, len(NAMES)), np.int64)
    centers = np.zeros((tiles, CELLS * CELLS), np.float32)
    best = np.zeros((tiles, CELLS * CELLS))
    views = np.zeros((tiles + 1, len(THINGS) + len(LABELS)), np.float32)
    thumbnail = np.zeros((CELLS * CELLS, len(THINGS)), np.float32)
    edges = CELL * np.arange(CELLS)

    def middle(box: Box) -> tuple[float, float]:
        return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2

    def show(box: Box, *names: str) -> int:
        """Cover the tokens under `box` by what `names` say (in the order of NAMES); returns its tile."""
        tile = tile_of(box, columns)
        left, top = TILE * (tile % columns), TILE * (tile // columns)
        x = np.clip(np.minimum(edges + CELL, box[2] - left) - np.maximum(edges, box[0] - left), 0, None)
        y = np.clip(np.minimum(edges + CELL, box[3] - top) - np.maximum(edges, box[1] - top), 0, None)
        cover = (y[:, None] * x[None]).reshape(-1) / CELL**2
        better = cover > best[tile]
        tokens[tile, better] = [words.index(name) + 1 if name else 0 for name, words in zip(names, NAMES.values(), strict=True)]
        best[tile] = np.maximum(best[tile], cover)
        views[tile, len(THINGS) + LABELS.index(names[2])] = 1
        return tile

    def view(tile: int, box: Box, thing: tuple[str, str]) -> None:
        x, y = middle(box)
        views[[tile, tiles], THINGS.index(thing)] = 1
        thumbnail[int(y * CELLS / (rows * TILE)) * CELLS + int(x * CELLS / (columns * TILE)), THINGS.index(thing)] = 1

    for sign in (*scene.signs, *scene.tags):
        tile = show(sign.box, sign.color, sign.shape, sign.label, "")
        view(tile, sign.box, (sign.color, sign.shape))
        x, y = middle(sign.box)
        centers[tile, int(y % TILE) // CELL * CELLS + int(x % TILE) // CELL] = 1
    if scene.table is not None:
        for row, (key, value) in enumerate(scene.table.rows):
            left, top, _, bottom = scene.table.row_box(row)
            show((left, top, left + CELL, bottom), "", "table", key, value)
            show((left + CELL, top, left + 2 * CELL, bottom), "", "table", value, "")
        view(tile_of(scene.table.box, columns), scene.table.box, ("", "table"))
    tokens[(best > 0.03) & (best < 0.35)] = -100
    return tokens, centers, views, thumbnail


def where(rng: np.random.Generator, scene: Scene) -> Example:
    """How many columns of tokens are left of a sign in its tile, or rows above it: no task of its own."""
    sign = scene.signs[rng.integers(len(scene.signs))]
    axis = int(rng.integers(2))
    before = int((sign.box[axis] + sign.box[2 + axis]) / 2 % TILE) // CELL
    return Example("where", f"Count {RELATIONS[axis]} sign {sign.label}.", str(before), (sign.box,))


@lru_cache(maxsize=4096)
def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Token ids of a text."""
    return tokenizer(text).input_ids


def draw_lesson(rng: np.random.Generator, tokenizer: PreTrainedTokenizerFast, phase: Phase, tiles_per_batch: int) -> Lesson:
    """Draw pictures of one grid, as many as make about `tiles_per_batch` tiles, and ask questions of each."""
    grids = [grid for grid in phase.grids if grid[0] * grid[1] <= phase.tiles]
    grid = grids[rng.integers(len(grids))]
    count = max(1, tiles_per_batch // (grid[0] * grid[1] + 1))
    pad = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    blocks = np.full((count, phase.questions, BLOCK), pad)
    answers = np.zeros((count, phase.questions), np.int64)
    scenes, names = [], []
    for b in range(count):
        labels = tuple(LABELS[i] for i in np.linspace(0, len(LABELS) - 1, phase.labels).astype(int))
        scale = int(rng.choice(phase.scales))
        settings = dict(signs=phase.signs, labels=labels, step=phase.step, tags=phase.tags, table=phase.table)
        scene = draw_scene(rng, grid, repeated=phase.repeated, scale=scale, **settings)  # type: ignore[arg-type]
        while not scene.signs:  # a table has left no place on a single tile
            scene = draw_scene(rng, grid, repeated=phase.repeated, scale=scale, **settings)  # type: ignore[arg-type]
        examples: list[Example] = []
        while len(examples) < phase.questions:
            examples += [example for task in phase.tasks if (example := ask(rng, scene, task))]
            for task in phase.extra:
                examples += [
                    example for example in [where(rng, scene) if task == "where" else ask(rng, scene, task)] if example
                ]
        examples = [examples[i] for i in rng.permutation(len(examples))[: phase.questions]]
        for q, example in enumerate(examples):
            prompt = encode(tokenizer, f"{example.question}<|im_end|>\n<|im_start|>assistant\n")
            ids = prompt + encode(tokenizer, f"{example.answer}<|im_end|>")
            blocks[b, q, : len(ids)] = ids
            answers[b, q] = len(prompt)
        scenes.append(scene)
        names.append([example.task for example in examples])
    return Lesson(scenes, torch.from_numpy(blocks), torch.from_numpy(answers), names)


def draw_batch(rng: np.random.Generator, tokenizer: PreTrainedTokenizerFast, phase: Phase, tiles_per_batch: int) -> Batch:
    """A lesson as `ptp-tiny` takes it: cut into tiles, with the labels of stage "see"."""
    lesson = draw_lesson(rng, tokenizer, phase, tiles_per_batch)
    pixels = torch.from_numpy(np.stack([cut(scene) for scene in lesson.scenes])).permute(0, 1, 4, 2, 3).float() / 255
    pixels = (pixels - torch.tensor(IMAGE_MEAN).view(3, 1, 1)) / torch.tensor(IMAGE_STD).view(3, 1, 1)
    parts = zip(*map(label, lesson.scenes), strict=True)
    tokens, centers, views, thumbnail = (torch.from_numpy(np.stack(part)) for part in parts)
    return Batch(pixels, tokens, centers, views, thumbnail, lesson.blocks, lesson.answers, lesson.tasks)
