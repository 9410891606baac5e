"""Pictures of many kinds and shapes, to read the grids of their tiles off: `draw(kind, seed, side)`."""

import functools
import zlib
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import torch
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil, get_optimal_tiled_canvas

import ptp.tiny

PHOTOS = sorted((Path(ptp.tiny.__file__).parent / "photos").glob("*.jpg"))
LETTERS = list("abcdefghijklmnopqrstuvwxyz")
MOST = 12
"""Tiles of a picture, the thumbnail not counted."""


def font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)


def color(rng: Generator, low: int = 0, high: int = 256) -> tuple[int, int, int]:
    return tuple(rng.integers(low, high, 3).tolist())


def blend(rng: Generator, share: np.ndarray) -> Image.Image:
    """Two colours mixed by a (height, width) map."""
    first, second = rng.integers(0, 256, (2, 3))
    return Image.fromarray((first + (second - first) * share[..., None]).astype(np.uint8))


def photo(rng: Generator, width: int, height: int) -> Image.Image:
    whole = Image.open(PHOTOS[rng.integers(len(PHOTOS))]).convert("RGB")
    zoom = min(whole.width / width, whole.height / height) * rng.uniform(0.3, 1)
    across, down = max(4, int(width * zoom)), max(4, int(height * zoom))
    x, y = (int(rng.integers(0, max(1, edge - part + 1))) for edge, part in ((whole.width, across), (whole.height, down)))
    return whole.crop((x, y, x + across, y + down)).resize((width, height), Image.Resampling.BICUBIC)


def text(rng: Generator, width: int, height: int) -> Image.Image:
    made, size = Image.new("RGB", (width, height), "white"), int(rng.integers(8, 40))
    for y in range(int(rng.integers(0, 30)), height, int(size * 1.4)):
        words = ["".join(rng.choice(LETTERS, int(rng.integers(2, 10)))) for _ in range(max(1, width // (size * 3)))]
        ImageDraw.Draw(made).text((int(rng.integers(0, 40)), y), " ".join(words), fill="black", font=font(size))
    return made


def stripes(rng: Generator, width: int, height: int, angle: float | None = None) -> Image.Image:
    angle = rng.uniform(0.1, 3) if angle is None else angle
    y, x = np.mgrid[:height, :width]
    period = np.exp(rng.uniform(np.log(2), np.log(max(width, height) / 1.5))) if rng.random() < 0.6 else rng.integers(2, 40)
    phase = (x * np.cos(angle) + y * np.sin(angle) + rng.uniform(0, period)) / period
    return blend(rng, np.floor(2 * phase) % 2 if rng.random() < 0.6 else 0.5 + 0.5 * np.sin(2 * np.pi * phase))


def checkers(rng: Generator, width: int, height: int) -> Image.Image:
    y, x = np.mgrid[:height, :width] // int(np.exp(rng.uniform(np.log(2), np.log(max(4, min(width, height) / 2)))))
    return blend(rng, (x + y) % 2)


def gradient(rng: Generator, width: int, height: int) -> Image.Image:
    angle = rng.choice([0, np.pi / 2, rng.uniform(0, np.pi)])
    y, x = np.mgrid[:height, :width]
    along = x * np.cos(angle) + y * np.sin(angle)
    return blend(rng, (along - along.min()) / max(1e-9, np.ptp(along)))


def noise(rng: Generator, width: int, height: int) -> Image.Image:
    grain = int(rng.choice([1, 1, 2, 5, 20]))
    grains = rng.integers(0, 256, (height // grain + 1, width // grain + 1, 3), dtype=np.uint8)
    return Image.fromarray(np.kron(grains, np.ones((grain, grain, 1), np.uint8))[:height, :width])


def lone_disc(rng: Generator, width: int, height: int) -> Image.Image:
    made, r = Image.new("RGB", (width, height), color(rng)), max(2, int(min(width, height) * rng.uniform(0.01, 0.1)))
    x, y = int(rng.integers(0, width)), int(rng.integers(0, height))
    ImageDraw.Draw(made).ellipse((x - r, y - r, x + r, y + r), fill=color(rng))
    return made


def faint_square(rng: Generator, width: int, height: int) -> Image.Image:
    ground, r = rng.integers(20, 230, 3), max(3, int(min(width, height) * rng.uniform(0.02, 0.2)))
    made = Image.new("RGB", (width, height), tuple(ground.tolist()))
    x, y = int(rng.integers(0, width)), int(rng.integers(0, height))
    ImageDraw.Draw(made).rectangle((x - r, y - r, x + r, y + r), fill=tuple((ground + rng.integers(2, 6)).tolist()))
    return made


def screen(rng: Generator, width: int, height: int) -> Image.Image:
    made = Image.new("RGB", (width, height), (245, 245, 248))
    drawn = ImageDraw.Draw(made)
    drawn.rectangle((0, 0, width, 30), fill=(40, 60, 90))
    for _ in range(int(rng.integers(3, 14))):
        x, y = int(rng.integers(0, width)), int(rng.integers(0, height))
        window = (x, y, x + int(rng.integers(30, 300)), y + int(rng.integers(20, 200)))
        drawn.rectangle(window, outline=(180, 180, 190), fill=color(rng, 200))
        drawn.text((x + 5, y + 3), f"File  Edit {rng.integers(1_000_000)}", fill=(20, 20, 20), font=font(13))
    return made


def table(rng: Generator, width: int, height: int) -> Image.Image:
    made = Image.new("RGB", (width, height), "white")
    drawn, (across, down) = ImageDraw.Draw(made), rng.integers(12, 120, 2).tolist()
    for x in range(0, width, across):
        drawn.line((x, 0, x, height), fill="black", width=int(rng.integers(1, 3)))
    for y in range(0, height, down):
        drawn.line((0, y, width, y), fill="black")
    if rng.random() < 0.5:
        for x in range(0, width, across):
            for y in range(0, height, down):
                drawn.text((x + 3, y + 2), str(rng.integers(10)), fill="black", font=font(max(8, min(across, down) // 2)))
    return made


def bars(rng: Generator, width: int, height: int) -> Image.Image:
    colors = rng.integers(0, 256, (1, int(rng.integers(2, 40)), 3), dtype=np.uint8)
    made = Image.fromarray(colors if rng.random() < 0.5 else colors.transpose(1, 0, 2))
    return made.resize((width, height), Image.Resampling.NEAREST)


KINDS: dict[str, Callable[[Generator, int, int], Image.Image]] = {
    "photo": photo, "text": text, "vertical": functools.partial(stripes, angle=0.0),
    "horizontal": functools.partial(stripes, angle=np.pi / 2), "diagonal": stripes, "checkers": checkers,
    "gradient": gradient, "noise": noise, "disc": lone_disc, "faint": faint_square, "screen": screen, "table": table,
    "bars": bars,
}  # fmt: skip


def draw(kind: str, seed: int, side: int) -> Image.Image:
    """A picture of about the resolution that tiles of this side are for, of a random shape, up to 1 : 150."""
    rng = np.random.default_rng([zlib.crc32(kind.encode()), seed])
    area = np.exp(2 * rng.uniform(np.log(60), np.log(5 * side + 300)))
    stretch = np.exp(
        rng.choice([rng.uniform(-0.8, 0.8), rng.uniform(-2.6, 2.6), rng.choice([-5, -4, 4, 5])], p=[0.6, 0.35, 0.05])
    )
    width, height = (int(np.clip(np.sqrt(value), 8, 6000)) for value in (area * stretch, area / stretch))
    return KINDS[kind](rng, width, height)


@functools.cache
def processor(side: int) -> GotOcr2ImageProcessorPil:
    return GotOcr2ImageProcessorPil(size={"height": side, "width": side}, crop_to_patches=True, min_patches=1, max_patches=MOST)


def cut(shown: Image.Image, side: int) -> tuple[Tensor, tuple[int, int]]:
    """(T, 3, side, side) tiles, the thumbnail last, and the grid that they were cut by."""
    grid = get_optimal_tiled_canvas((shown.height, shown.width), (side, side), 1, MOST)
    return torch.as_tensor(processor(side)([shown], return_tensors="pt")["pixel_values"]), grid
