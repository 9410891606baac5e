"""Accuracy of the embedded model per task, method and keep ratio, on the same fresh pictures for all of them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..bench.measure import answer, encode_prompt
from ..methods import METHODS
from ..pruner import Pruner
from ..runtime import ImageTrace
from ..tiny.drawing import GRIDS, HELD_OUT_PHOTOS, TILE, Scene, Sign, draw_scene
from ..tiny.tasks import TASKS, Example, ask

SPLITS = {"report": 1, "tune": 2}
"""Disjoint streams of pictures: numbers are reported on one, defaults chosen on the other. Training uses neither."""
TEXTURE_SHARE = 0.3


@dataclass(frozen=True)
class Variant:
    """A method with some settings of its own, as `pyramid:alpha=0:region=uniform`."""

    name: str
    method: str
    settings: dict[str, Any]

    def pruner(self, keep_ratio: float) -> Pruner:
        """The method at a keep ratio, without score maps."""
        return METHODS[self.method](keep_ratio=keep_ratio, record_scores=False, **self.settings)


def parse_variant(text: str) -> Variant:
    """Read `method[:setting=value]...`.

    Raises:
        ValueError: unknown method or setting; the message lists the valid ones.
    """
    method, *parts = text.strip().split(":")
    if method not in METHODS:
        raise ValueError(f"Method must be one of {', '.join(METHODS)}, got {method!r}. Choose one of these.")
    fields = {
        name: f for name, f in METHODS[method].__dataclass_fields__.items() if name not in ("keep_ratio", "record_scores")
    }
    settings: dict[str, Any] = {}
    for part in parts:
        name, _, value = part.partition("=")
        if name not in fields:
            raise ValueError(f"Settings of {method} are {', '.join(fields)}, got {part!r}. Write one as alpha=0.")
        settings[name] = _parse(value)
    variant = Variant(text.strip(), method, settings)
    variant.pruner(0.5)  # a wrong value is refused before any picture is drawn
    return variant


def _parse(value: str) -> Any:
    if value in ("None", "none"):
        return None
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


@dataclass
class Cell:
    """Results of one task, variant and keep ratio: one entry per picture.

    Attributes:
        right: Whether the answer was right.
        evidence: Share of the asked sign's visual tokens kept (tiles only).
        kept, total: Visual tokens after and before, summed.
    """

    task: str
    variant: str
    keep_ratio: float
    right: list[bool] = field(default_factory=list)
    evidence: list[float] = field(default_factory=list)
    kept: int = 0
    total: int = 0

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return float(np.mean(self.right))


def fresh_examples(samples: int, seed: int, split: str, tasks: Sequence[str]) -> Iterator[tuple[Scene, list[Example]]]:
    """`samples` pictures with one question per task; picture i is the same whatever else is asked for."""
    for number in range(samples):
        rng = np.random.default_rng([SPLITS[split], seed, number])
        grid = GRIDS[rng.integers(len(GRIDS))]
        scene = draw_scene(rng, grid, HELD_OUT_PHOTOS, texture_share=TEXTURE_SHARE)
        questions = {task: ask(rng, scene, task) for task in TASKS}
        yield scene, [questions[task] for task in tasks]


def evidence_tokens(sign: Sign, image: ImageTrace) -> list[int]:
    """Visual tokens of the tiles that a sign covers to at least a third of the token or of the sign."""
    columns, _ = image.grid or (1, 1)
    side = round(image.sizes[0] ** 0.5)
    cell = TILE / side
    left, top, right, bottom = sign.box
    tile = (top // TILE) * columns + left // TILE
    tokens = []
    for place in range(side * side):
        x, y = left // TILE * TILE + place % side * cell, top // TILE * TILE + place // side * cell
        width, height = min(right, x + cell) - max(left, x), min(bottom, y + cell) - max(top, y)
        if width > 0 and height > 0 and width * height >= min(cell * cell, (right - left) * (bottom - top)) / 3:
            tokens.append(tile * side * side + place)
    return tokens


@torch.inference_mode()
def evaluate(
    model: Any,
    processor: Any,
    variants: Sequence[Variant],
    keep_ratios: Sequence[float],
    *,
    tasks: Sequence[str] = tuple(TASKS),
    samples: int = 500,
    seed: int = 0,
    split: str = "report",
    advance: Callable[[], None] = lambda: None,
) -> list[Cell]:
    """Ask every question with every variant at every ratio; each picture is encoded once per vision layer.

    Args:
        advance: Called after each picture.

    Returns:
        One `Cell` per task, variant and ratio below 1, and per task one cell of variant "full" at ratio 1.
    """
    ratios = [keep for keep in keep_ratios if keep < 1]
    cells = {(task, "full", 1.0): Cell(task, "full", 1.0) for task in tasks}
    cells |= {(t, v.name, k): Cell(t, v.name, k) for t in tasks for v in variants for k in ratios}
    for scene, examples in fresh_examples(samples, seed, split, tasks):
        encoded: dict[int | None, Any] = {}
        for example in examples:
            inputs = encode_prompt(processor, [scene.image], example.question, model)
            pixels = inputs.pop("pixel_values")

            def ask_model(cell: Cell, pictures: Any, inputs: Any = inputs, example: Example = example) -> None:
                text = answer(model, processor, {**inputs, "mm_encoder_outputs": {"image": pictures}}, max_new_tokens=4)
                cell.right.append(text == example.answer)

            for variant in variants:
                for keep in ratios:
                    pruner = variant.pruner(keep)
                    with pruner(model, processor) as trace:
                        if pruner.vision_layer not in encoded:
                            encoded[pruner.vision_layer] = model.get_image_features(pixels, return_dict=True)
                        cell = cells[example.task, variant.name, keep]
                        ask_model(cell, encoded[pruner.vision_layer])
                    (image,) = trace.images
                    tokens = evidence_tokens(example.sign, image)
                    cell.evidence.append(len(set(tokens) & set(image.kept.tolist())) / len(tokens))
                    cell.kept += len(image.kept)
                    cell.total += image.num_tokens
            if not encoded:
                encoded[None] = model.get_image_features(pixels, return_dict=True)
            cell = cells[example.task, "full", 1.0]
            ask_model(cell, next(iter(encoded.values())))
            cell.evidence.append(1.0)
            cell.kept += (count := int((inputs["input_ids"] == model.config.image_token_id).sum()))
            cell.total += count
        advance()
    return list(cells.values())
