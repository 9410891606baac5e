"""Draw which part of a picture the kept tokens of every family show, for a score planted on the picture.

Random weights: only the way from a token to its pixels is seen. `python docs/families.py` writes docs/images/families.jpg.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image, ImageOps

import ptp
from ptp.report.overlay import draw_grid, keep, token_map
from ptp.selection import Selection, keep_best, total_budget
from ptp.testing.families import FAMILIES, Scale, tokenizer

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "src/ptp/tiny/demo_pictures/coffee_1.jpg"
CENTER = (0.42, 0.55)
"""Where the score is planted, as fractions of width and height."""
TEXT = dict(
    hidden_size=48, num_hidden_layers=12, num_attention_heads=4, num_key_value_heads=2, head_dim=12, intermediate_size=96
)
SMALL = Scale(hidden=32, layers=3, heads=2, mlp=64, text=TEXT, real=True)


@dataclass(frozen=True, kw_only=True)
class Planted(ptp.Pruner):
    """Keeps the tokens that show what is nearest to `CENTER`; those of the thumbnail last of all."""

    def select(self, picture, stage):
        boxes, sizes = picture.layout.boxes, picture.sizes
        x, y = (boxes[:, :2] + boxes[:, 2:]).mT / 2
        score = -torch.hypot(x - CENTER[0], y - CENTER[1])
        if picture.thumbnail:
            score[-sizes[-1] :] = -math.inf
        kept = keep_best(score, [len(score)], [total_budget(stage.keep_ratio, len(score))])
        return Selection(kept, picture.count_per_tile(kept))


def main() -> None:
    """Write the figure."""
    shown = Image.open(PICTURE).convert("RGB")
    shown = shown.resize((900, round(900 * shown.height / shown.width)))
    rows = 4
    columns = math.ceil((1 + len(FAMILIES)) / rows)
    figure, axes = plt.subplots(rows, columns, figsize=(3.5 * columns, 2.8 * rows))
    axes.flat[0].imshow(shown)
    axes.flat[0].plot(CENTER[0] * shown.width, CENTER[1] * shown.height, "+", color="red", markersize=16, markeredgewidth=2)
    axes.flat[0].set_title("where the score is planted")
    for axis, family in zip(axes.flat[1:], FAMILIES.values(), strict=False):
        model, processor = family.build(SMALL), family.processor(SMALL)
        width, height = family.shape(shown.size)
        seen = ImageOps.fit(shown, (width, height))  # the middle, of which boxes are fractions
        inputs = family.encode(processor, [([seen.resize((2 * width, 2 * height))], "What is it?")])
        with torch.no_grad(), Planted(keep_ratio=0.1)(model, tokenizer()) as trace:
            model(**inputs)
        (image,) = trace.images
        chosen = np.zeros(image.num_tokens, bool)
        chosen[image.kept.numpy()] = True
        panel = keep(seen, token_map(image, chosen, seen.size))
        draw_grid(panel, image)
        axis.imshow(panel)
        tiles = "x".join(map(str, image.grid or (1, 1)))
        axis.set_title(f"{family.name}: {len(image.kept)} of {image.num_tokens:,} tokens, {tiles} regions", fontsize=9)
    for axis in axes.flat:
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(ROOT / "docs/images/families.jpg", dpi=90, pil_kwargs={"quality": 85})


if __name__ == "__main__":
    main()
