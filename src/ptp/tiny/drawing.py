"""Pictures to ask about: coloured signs bearing labels, on photographs and textures.

A picture is drawn on a canvas of whole tiles, so that the processor's tiling reproduces it exactly,
and can be drawn several times larger (`scale`) to stand for a high-resolution photograph.
"""

from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import resources

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

TILE = 112
"""Side of one tile in pixels of the model's canvas."""

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (215, 30, 35),
    "orange": (245, 135, 20),
    "yellow": (245, 220, 40),
    "green": (35, 150, 60),
    "blue": (35, 80, 205),
    "purple": (130, 50, 165),
    "white": (245, 245, 245),
    "black": (25, 25, 25),
}
SHAPES = ("circle", "square", "triangle", "diamond")
LABELS = tuple("ABCDEFGHJKLMNPQRSTUVWXYZ0123456789")
"""Letters and digits without I and O, which nobody can tell from 1 and 0."""

TRAIN_PHOTOS = ("astronaut", "brick", "chelsea", "flower", "grass", "gravel", "hubble", "rocket")
HELD_OUT_PHOTOS = ("china", "coffee")
"""Photographs that training never sees; evaluation and the demo are drawn on these."""

GRIDS = ((3, 1), (1, 3), (2, 2), (3, 2), (2, 3), (4, 2), (2, 4), (3, 3), (5, 2), (2, 5), (4, 3), (3, 4), (6, 2), (2, 6))
"""Tile grids (columns, rows) of 3 to 12 tiles that pictures are drawn on."""


@dataclass(frozen=True)
class Sign:
    """One sign: what it looks like and where it is.

    `box` is (left, top, right, bottom) in pixels of the unscaled canvas.
    """

    color: str
    shape: str
    label: str
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class Scene:
    """A drawn picture: the PIL image, its tile grid (columns, rows) and its signs."""

    image: Image.Image
    grid: tuple[int, int]
    signs: tuple[Sign, ...]


@cache
def photo(name: str) -> Image.Image:
    """Load one of the photographs that ship with the package (licences: photos/README.md)."""
    with resources.files("ptp.tiny").joinpath("photos", f"{name}.jpg").open("rb") as file:
        return Image.open(file).convert("RGB")


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    # matplotlib ships DejaVu: the same glyphs on every machine, without a font of our own.
    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans-Bold.ttf", size)


def _corners(shape: str, size: int) -> list[tuple[float, float]]:
    end = size - 1
    return {
        "square": [(0.06 * end, 0.06 * end), (0.94 * end, 0.06 * end), (0.94 * end, 0.94 * end), (0.06 * end, 0.94 * end)],
        "triangle": [(end / 2, 0), (end, 0.92 * end), (0, 0.92 * end)],
        "diamond": [(end / 2, 0), (end, end / 2), (end / 2, end), (0, end / 2)],
    }[shape]


@lru_cache(maxsize=4096)
def _shape_mask(shape: str, size: int) -> Image.Image:
    big = Image.new("L", (4 * size, 4 * size))
    draw = ImageDraw.Draw(big)
    if shape == "circle":
        draw.ellipse((0, 0, 4 * size - 1, 4 * size - 1), fill=255)
    else:
        draw.polygon(_corners(shape, 4 * size), fill=255)
    return big.resize((size, size), Image.Resampling.LANCZOS)


@lru_cache(maxsize=4096)
def _glyph_mask(label: str, shape: str, size: int) -> Image.Image:
    mask = Image.new("L", (size, size))
    # A triangle is widest low down, so its label sits there and is a little smaller.
    height, middle = (0.46, 0.62) if shape == "triangle" else (0.54, 0.5)
    ImageDraw.Draw(mask).text((size / 2, size * middle), label, fill=255, font=_font(round(size * height / 0.73)), anchor="mm")
    return mask


def _texture(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    canvas = np.zeros((height, width, 3), np.float32)
    for cells, weight in ((int(rng.integers(2, 5)), 0.7), (int(rng.integers(6, 24)), 0.3)):
        coarse = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        canvas += weight * np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    grain = rng.normal(0, rng.uniform(0, 12), (height, width, 1))
    return Image.fromarray(np.clip(canvas + grain, 0, 255).astype(np.uint8))


def _crop(rng: np.random.Generator, name: str, width: int, height: int) -> Image.Image:
    source = photo(name)
    share = min(source.width / width, source.height / height) * rng.uniform(0.5, 1.0)
    w, h = width * share, height * share
    left, top = rng.uniform(0, source.width - w), rng.uniform(0, source.height - h)
    crop = source.resize((width, height), Image.Resampling.BICUBIC, box=(left, top, left + w, top + h))
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else crop


def background(rng: np.random.Generator, size: tuple[int, int], photos: tuple[str, ...], texture_share: float) -> Image.Image:
    """A crop of one of `photos`, or (with probability `texture_share`) a random texture, `size` = (width, height)."""
    if rng.random() < texture_share:
        return _texture(rng, *size)
    return _crop(rng, photos[rng.integers(len(photos))], *size)


def paste_sign(image: Image.Image, sign: Sign, scale: int = 1, rgb: tuple[int, ...] | None = None) -> None:
    """Draw `sign` onto `image` (in place), its box multiplied by `scale`."""
    left, top, right, _ = (scale * side for side in sign.box)
    size = right - left
    color = rgb or COLORS[sign.color]
    ink = (255, 255, 255) if 0.3 * color[0] + 0.59 * color[1] + 0.11 * color[2] < 140 else (0, 0, 0)
    border = max(1, round(size / 24))
    image.paste(ink, (left, top), _shape_mask(sign.shape, size))
    image.paste(color, (left + border, top + border), _shape_mask(sign.shape, size - 2 * border))
    image.paste(ink, (left, top), _glyph_mask(sign.label, sign.shape, size))


def _free_box(
    rng: np.random.Generator,
    tiles: np.ndarray,
    columns: int,
    sizes: tuple[int, ...],
    step: int,
    taken: list[tuple[int, int, int, int]],
) -> tuple[int, int, int, int] | None:
    for _ in range(30):
        tile, size = int(rng.choice(tiles)), int(rng.choice(sizes))
        x, y = (step * int(rng.integers(0, (TILE - size) // step + 1)) for _ in range(2))
        left, top = TILE * (tile % columns) + x, TILE * (tile // columns) + y
        box = (left, top, left + size, top + size)
        if all(box[2] <= t[0] or box[0] >= t[2] or box[3] <= t[1] or box[1] >= t[3] for t in taken):
            return box
    return None


def draw_scene(
    rng: np.random.Generator,
    grid: tuple[int, int],
    photos: tuple[str, ...] = TRAIN_PHOTOS,
    *,
    signs: tuple[int, int] = (4, 7),
    sizes: tuple[int, ...] = (42, 49),
    step: int = 7,
    clustered: float = 0.5,
    texture_share: float = 0.4,
    scale: int = 1,
) -> Scene:
    """Draw one picture of `grid` = (columns, rows) tiles.

    Args:
        rng: The only source of randomness; the same state draws the same picture.
        photos: Photographs to choose the background from.
        signs: Least and most signs. No two share colour and shape, no two a label, none crosses a tile's edge.
        sizes: Sides a sign may have, in pixels of the unscaled canvas.
        step: Signs sit on multiples of this many pixels inside their tile (7 is half a patch; 1 is anywhere, which this
            version of the model has not learned).
        clustered: Share of the pictures whose signs are all in one to three tiles (the other tiles stay empty).
        texture_share: Share of the pictures drawn on a random texture instead of a photograph.
        scale: Draw everything this many times larger; boxes stay in unscaled pixels.
    """
    columns, rows = grid
    image = background(rng, (scale * TILE * columns, scale * TILE * rows), photos, texture_share)
    tiles = np.arange(columns * rows)
    if rng.random() < clustered:
        tiles = rng.choice(tiles, size=min(len(tiles), int(rng.integers(1, 4))), replace=False)
    count = int(rng.integers(signs[0], signs[1] + 1))
    looks = rng.permutation(len(COLORS) * len(SHAPES))[:count]
    labels = rng.permutation(len(LABELS))[:count]
    placed: list[Sign] = []
    for look, label in zip(looks, labels, strict=True):
        box = _free_box(rng, tiles, columns, sizes, step, [sign.box for sign in placed])
        if box is None:  # the tiles are full: a picture with fewer signs
            continue
        color = list(COLORS)[look % len(COLORS)]
        sign = Sign(color, SHAPES[look // len(COLORS)], LABELS[label], box)
        rgb = tuple(int(c) for c in np.clip(np.array(COLORS[color]) + rng.integers(-12, 13, 3), 0, 255))
        paste_sign(image, sign, scale, rgb)
        placed.append(sign)
    return Scene(image, grid, tuple(placed))
