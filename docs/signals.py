"""Draw the signals of `PyramidPruner` on a demo picture: `python docs/signals.py` writes docs/images/signals.jpg."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import ptp
from ptp.bench.measure import encode_prompt
from ptp.report.overlay import draw_grid, heat, keep, token_map
from ptp.tiny.demo import load_demo

ROOT = Path(__file__).parents[1]
QUESTION = "What is on the yellow circle?"
WIDTH, GAP, LINE = 480, 8, 34
TITLES = {
    "region": "1. Region: how much the tile matters",
    "token": "2. Token: attention it gets in its tile",
    "instruction": "3. Instruction: likeness to the words",
    "fused": "All three, novelty weighed in",
}


def main() -> None:
    """Write the figure: six panels with titles."""
    model, processor = ptp.load()
    picture = load_demo()[0]["coffee_1.jpg"].convert("RGB")
    with ptp.PyramidPruner(keep_ratio=0.2)(model, processor) as trace:
        model.generate(**encode_prompt(processor, [picture], QUESTION, model), max_new_tokens=1)
    (image,) = trace.images
    large = picture.resize((WIDTH, round(WIDTH * picture.height / picture.width)), Image.Resampling.LANCZOS)
    panels = [(f'"{QUESTION}"', large)]
    for name, title in TITLES.items():
        values = image.scores[name].numpy()
        values = np.repeat(values, image.sizes) if name == "region" else values
        panels.append((title, heat(large, token_map(image, values, large.size))))
    chosen = np.zeros(image.num_tokens, bool)
    chosen[image.kept.numpy()] = True
    panels.append((f"Kept: {len(image.kept)} of {image.num_tokens} tokens", keep(large, token_map(image, chosen, large.size))))
    step, font = large.height + LINE + GAP, ImageFont.load_default(18)
    sheet = Image.new("RGB", (3 * WIDTH + 2 * GAP, 2 * step), "white")
    for number, (title, panel) in enumerate(panels):
        if number:
            draw_grid(panel, image)
        left, top = number % 3 * (WIDTH + GAP), number // 3 * step
        ImageDraw.Draw(sheet).text((left, top + 8), title, font=font, fill="black")
        sheet.paste(panel, (left, top + LINE))
    sheet.save(ROOT / "docs/images/signals.jpg", quality=85)


if __name__ == "__main__":
    main()
