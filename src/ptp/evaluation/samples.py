"""Fresh pictures with one question of each task, in batches that one forward pass can take."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..adapters import Layout
from ..tiny.difficulty import Difficulty
from ..tiny.drawing import GRIDS, HELD_OUT_PHOTOS, TILE, Box, Scene, draw_scene, tiled_as_drawn
from ..tiny.tasks import Example

SPLITS = {"report": 1, "tune": 2}
"""Disjoint streams of pictures: numbers are reported on one, defaults chosen on the other. Training uses neither."""
TEXTURE_SHARE = 0.3
PIXEL = 0.01
"""What rounding may take from an area in pixels."""
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


def evidence_tokens(boxes: Sequence[Box], grid: tuple[int, int], layout: Layout) -> set[int]:
    """Visual tokens of which `boxes` cover a quarter, or that hold a quarter of a box: every box has one. The thumbnail's
    do not count.

    Args:
        boxes: In pixels of the unscaled canvas.
        grid: (columns, rows) of the tiles that the picture was drawn on.
        layout: Where the picture's visual tokens are on it, whatever tiles it was cut into.
    """
    shown = layout.tokens - (layout.sizes[-1] if layout.thumbnail else 0)
    scale = torch.tensor([TILE * grid[0], TILE * grid[1]] * 2)
    left, top, right, bottom = (layout.boxes[:shown].double() * scale).unbind(dim=1)
    tokens: set[int] = set()
    for x0, y0, x1, y1 in boxes:
        width = right.clamp(max=x1) - left.clamp(min=x0)
        height = bottom.clamp(max=y1) - top.clamp(min=y0)
        covered = width.clamp(min=0) * height.clamp(min=0)
        enough = ((right - left) * (bottom - top)).clamp(max=(x1 - x0) * (y1 - y0)) / 4
        found = covered >= enough.clamp(max=covered.max()) - PIXEL
        tokens |= set(found.nonzero()[:, 0].tolist())
    return tokens
