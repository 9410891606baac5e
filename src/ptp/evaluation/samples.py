"""Fresh pictures with one question of each task, in batches that one forward pass can take."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..tiny.difficulty import Difficulty
from ..tiny.drawing import GRIDS, HELD_OUT_PHOTOS, TILE, Box, Scene, draw_scene, tiled_as_drawn
from ..tiny.tasks import Example

SPLITS = {"report": 1, "tune": 2}
"""Disjoint streams of pictures: numbers are reported on one, defaults chosen on the other. Training uses neither."""
TEXTURE_SHARE = 0.3
BATCH_TILES = 208
"""Tiles (thumbnails included) that are encoded and answered in one pass: 16 pictures of 12 tiles."""


@dataclass(frozen=True)
class Sample:
    """A picture and its questions, by task. Sample `number` is the same however many are drawn, whatever is asked."""

    number: int
    scene: Scene
    examples: dict[str, Example]


def draw_sample(seed: int, split: str, number: int, difficulty: Difficulty = Difficulty()) -> Sample:
    """Draw sample `number`: pictures are drawn until one allows a question of every task of `difficulty`."""
    rng = np.random.default_rng([SPLITS[split], seed, number])
    while True:
        grid = GRIDS[rng.integers(len(GRIDS))]
        scale = int(rng.choice(difficulty.scales))
        if not tiled_as_drawn(grid, scale):
            scale = 1
        options = {"texture_share": TEXTURE_SHARE, "scale": scale, **difficulty.scene}
        scene = draw_scene(rng, grid, HELD_OUT_PHOTOS, **options)
        examples = {task: difficulty.ask(rng, scene, task) for task in difficulty.tasks}
        found = {task: example for task, example in examples.items() if example is not None}
        if len(found) == len(examples):
            return Sample(number, scene, found)


def batches(samples: Iterator[Sample]) -> list[list[Sample]]:
    """Group samples by their number of tiles: equal prompts but for the question, so that hardly anything is padded."""
    groups: dict[int, list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[sample.scene.grid[0] * sample.scene.grid[1]].append(sample)
    result = []
    for tiles, group in sorted(groups.items()):
        size = max(1, BATCH_TILES // (tiles + 1))
        result += [group[start : start + size] for start in range(0, len(group), size)]
    return result


def evidence_tokens(boxes: Sequence[Box], grid: tuple[int, int], tokens_per_tile: int) -> set[int]:
    """Visual tokens of the tiles of which `boxes` cover a quarter, or that hold a quarter of a box: every box of 28 px has one.

    Args:
        boxes: Each inside one tile of the unscaled canvas.
        grid: (columns, rows) of the tiles.
        tokens_per_tile: A square number.
    """
    side = round(tokens_per_tile**0.5)
    cell = TILE / side
    tokens = set()
    for left, top, right, bottom in boxes:
        column, row = left // TILE, top // TILE
        for place in range(tokens_per_tile):
            x, y = column * TILE + place % side * cell, row * TILE + place // side * cell
            width, height = min(right, x + cell) - max(left, x), min(bottom, y + cell) - max(top, y)
            if width > 0 and height > 0 and width * height >= min(cell * cell, (right - left) * (bottom - top)) / 4:
                tokens.add((row * grid[0] + column) * tokens_per_tile + place)
    return tokens
