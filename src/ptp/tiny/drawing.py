"""Pictures to ask about: coloured signs, small tags and a table, all bearing labels, on photographs and textures.

A picture is drawn on a canvas of whole tiles, so that the processor's tiling reproduces it exactly,
and can be drawn several times larger (`scale`) to stand for a high-resolution photograph.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import resources

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..errors import require_extra

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
TAG_COLORS: dict[str, tuple[int, int, int]] = {"pink": (250, 150, 205), "cyan": (120, 225, 235), "gray": (165, 165, 165)}
SHAPES = ("circle", "square", "triangle", "diamond")
TAG = "tag"
"""The shape of a tag: a small plate, readable in its tile but not in the thumbnail."""
LETTERS, DIGITS = tuple("ABCDEFGHJKLMNPQRSTUVWXYZ"), tuple("0123456789")
LABELS = LETTERS + DIGITS
"""Letters and digits without I and O, which nobody can tell from 1 and 0."""
SCALES = (1, 2, 3)
"""Scales that pictures are drawn at: shrinking a large picture softens it, and users bring large pictures."""
CELL = 28
"""Side of a table's cell, and of one visual token, in pixels of the model's canvas."""
Box = tuple[int, int, int, int]
"""(left, top, right, bottom) in pixels of the unscaled canvas."""

TRAIN_PHOTOS = ("astronaut", "brick", "chelsea", "flower", "grass", "gravel", "hubble", "rocket")
HELD_OUT_PHOTOS = ("china", "coffee")
"""Photographs that training never sees; evaluation and the demo are drawn on these."""

GRIDS = ((3, 1), (1, 3), (2, 2), (3, 2), (2, 3), (4, 2), (2, 4), (3, 3), (5, 2), (2, 5), (4, 3), (3, 4), (6, 2), (2, 6))
"""Tile grids (columns, rows) of 3 to 12 tiles that pictures are drawn on."""


def tiled_as_drawn(grid: tuple[int, int], scale: int) -> bool:
    """Whether the processor cuts a picture into the grid it was drawn on.

    It takes the grid of best aspect ratio, and of several the largest that the picture's pixels half fill: drawn at twice
    the size, 2 x 2 tiles become 3 x 3.
    """
    columns, rows = grid
    return scale == 1 or all(c * rows != r * columns or c * r <= columns * rows for c, r in GRIDS)


@dataclass(frozen=True)
class Sign:
    """One sign (or tag): what it looks like and where it is."""

    color: str
    shape: str
    label: str
    box: Box


@dataclass(frozen=True)
class Table:
    """A card with one (letter, digit) pair a row, its cells `CELL` pixels wide and high."""

    rows: tuple[tuple[str, str], ...]
    box: Box

    def row_box(self, row: int) -> Box:
        """Where row `row` is."""
        left, top, right, _ = self.box
        return left, top + CELL * row, right, top + CELL * (row + 1)


@dataclass(frozen=True)
class Scene:
    """A drawn picture: the PIL image, its tile grid (columns, rows) and what is on it."""

    image: Image.Image
    grid: tuple[int, int]
    signs: tuple[Sign, ...]
    tags: tuple[Sign, ...]
    table: Table | None


@cache
def photo(name: str) -> Image.Image:
    """Load one of the photographs that ship with the package (licences: photos/README.md)."""
    with resources.files("ptp.tiny").joinpath("photos", f"{name}.jpg").open("rb") as file:
        return Image.open(file).convert("RGB")


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    # matplotlib ships DejaVu: the same glyphs on every machine, without a font of our own.
    require_extra("Drawing pictures", "eval", "matplotlib")
    import matplotlib

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
    elif shape == TAG:
        draw.rounded_rectangle((0, 0, 4 * size - 1, 4 * size - 1), radius=size, fill=255)
    else:
        draw.polygon(_corners(shape, 4 * size), fill=255)
    return big.resize((size, size), Image.Resampling.LANCZOS)


@lru_cache(maxsize=4096)
def _glyph_mask(label: str, shape: str, size: int) -> Image.Image:
    mask = Image.new("L", (size, size))
    # A triangle is widest low down, so its label sits there and is a little smaller.
    height, middle = {"triangle": (0.46, 0.62), TAG: (0.62, 0.5)}.get(shape, (0.54, 0.5))
    ImageDraw.Draw(mask).text((size / 2, size * middle), label, fill=255, font=_font(round(size * height / 0.73)), anchor="mm")
    return mask


def _texture(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    canvas = np.zeros((height, width, 3), np.float32)
    for cells, weight in ((int(rng.integers(2, 5)), 0.7), (int(rng.integers(6, 24)), 0.3)):
        coarse = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        canvas += weight * np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    canvas += rng.uniform(0, 12) * rng.standard_normal((height, width, 1), np.float32)
    return Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))


def _crop(rng: np.random.Generator, name: str, width: int, height: int) -> Image.Image:
    source = photo(name)
    share = min(source.width / width, source.height / height) * rng.uniform(0.5, 1.0)
    w, h = width * share, height * share
    left, top = rng.uniform(0, source.width - w), rng.uniform(0, source.height - h)
    crop = source.resize((width, height), Image.Resampling.BICUBIC, box=(left, top, left + w, top + h))
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else crop


def background(
    rng: np.random.Generator, size: tuple[int, int], photos: tuple[str, ...], texture_share: float, scale: int = 1
) -> Image.Image:
    """A crop of one of `photos`, or (with probability `texture_share`) a random texture, `scale` times `size` large."""
    width, height = (scale * side for side in size)
    if rng.random() < texture_share:
        return _texture(rng, *size).resize((width, height), Image.Resampling.BICUBIC)
    return _crop(rng, photos[rng.integers(len(photos))], width, height)


def paste_sign(image: Image.Image, sign: Sign, scale: int = 1, rgb: tuple[int, ...] | None = None) -> None:
    """Draw `sign` onto `image` (in place), its box multiplied by `scale`."""
    left, top, right, _ = (scale * side for side in sign.box)
    size = right - left
    color = rgb or (TAG_COLORS if sign.shape == TAG else COLORS)[sign.color]
    ink = (255, 255, 255) if 0.3 * color[0] + 0.59 * color[1] + 0.11 * color[2] < 140 else (0, 0, 0)
    border = max(1, round(size / 24))
    image.paste(ink, (left, top), _shape_mask(sign.shape, size))
    image.paste(color, (left + border, top + border), _shape_mask(sign.shape, size - 2 * border))
    image.paste(ink, (left, top), _glyph_mask(sign.label, sign.shape, size))


def paste_table(image: Image.Image, table: Table, scale: int = 1) -> None:
    """Draw `table` onto `image` (in place), its box multiplied by `scale`."""
    left, top, right, bottom = (scale * side for side in table.box)
    draw = ImageDraw.Draw(image)
    draw.rectangle((left, top, right - 1, bottom - 1), fill=(250, 250, 245), outline=(60, 60, 60), width=scale)
    cell = scale * CELL
    for row, texts in enumerate(table.rows):
        if row:
            draw.line((left, top + row * cell, right - 1, top + row * cell), fill=(170, 170, 170), width=scale)
        for column, text in enumerate(texts):
            middle = (left + (column + 0.5) * cell, top + (row + 0.5) * cell)
            draw.text(middle, text, fill=(15, 15, 15), font=_font(round(0.65 * cell / 0.73)), anchor="mm")


def _apart(box: Box, taken: Iterable[Box]) -> bool:
    return all(box[2] <= t[0] or box[0] >= t[2] or box[3] <= t[1] or box[1] >= t[3] for t in taken)


def _free_box(
    rng: np.random.Generator, tiles: np.ndarray, columns: int, size: tuple[int, int], step: int, taken: Iterable[Box]
) -> Box | None:
    """A free place of `size` = (width, height) inside one of `tiles`, or None after 30 tries."""
    width, height = size
    for _ in range(30):
        tile = int(rng.choice(tiles))
        x, y = (step * int(rng.integers(0, (TILE - side) // step + 1)) for side in size)
        left, top = TILE * (tile % columns) + x, TILE * (tile // columns) + y
        box = (left, top, left + width, top + height)
        if _apart(box, taken):
            return box
    return None


def tile_of(box: Box, columns: int) -> int:
    """The tile that `box` lies in, in raster order."""
    return box[1] // TILE * columns + box[0] // TILE


def _choose_looks(rng: np.random.Generator, count: int, repeated: bool) -> list[tuple[str, str]]:
    """`count` different (color, shape) pairs; where `repeated`, two to four of them share a color."""
    looks = [(color, shape) for color in COLORS for shape in SHAPES]
    looks = [looks[i] for i in rng.permutation(len(looks))]
    if repeated:
        main, most = looks[0][0], int(rng.integers(2, 5))
        looks = [look for look in looks if look[0] == main][:most] + [look for look in looks if look[0] != main]
    looks = looks[:count]
    return [looks[i] for i in rng.permutation(len(looks))]


def _draw_table(rng: np.random.Generator, tile: np.ndarray, columns: int, labels: tuple[str, ...]) -> Table:
    rows = int(rng.integers(3, 5))
    box = _free_box(rng, tile, columns, (2 * CELL, rows * CELL), CELL, ())
    assert box is not None  # nothing else is there yet
    letters = [label for label in labels if label in LETTERS]
    keys, values = (rng.permutation(len(texts))[:rows] for texts in (letters, DIGITS))
    return Table(tuple((letters[k], DIGITS[v]) for k, v in zip(keys, values, strict=True)), box)


def draw_scene(
    rng: np.random.Generator,
    grid: tuple[int, int],
    photos: tuple[str, ...] = TRAIN_PHOTOS,
    *,
    signs: tuple[int, int] = (4, 7),
    sizes: tuple[int, ...] = (42, 49),
    table: bool = True,
    tags: int = 2,
    tag_size: int = 28,
    labels: tuple[str, ...] = LABELS,
    step: int = 7,
    repeated: float = 0.8,
    clustered: float = 0.5,
    texture_share: float = 0.4,
    scale: int = 1,
) -> Scene:
    """Draw one picture of `grid` = (columns, rows) tiles: a table, signs and tags.

    Args:
        rng: The only source of randomness; the same state draws the same picture.
        photos: Photographs to choose the background from.
        signs: Least and most signs. No two share colour and shape, no two signs or tags a label, none crosses a tile's
            edge; the first two are in one tile.
        sizes: Sides a sign may have, in pixels of the unscaled canvas.
        table: Whether there is a table.
        tags: Tags, each of another colour.
        tag_size: Side of a tag.
        labels: What signs and tags may bear; its letters (four at least) are those of the table.
        step: Signs and tags sit on multiples of this many pixels inside their tile (7 is half a patch; 1 is anywhere,
            which this version of the model has not learned).
        repeated: Share of the pictures with several signs of one color: without any, every count would be one.
        clustered: Share of the pictures whose signs and tags are all in two or three tiles (the others stay empty).
        texture_share: Share of the pictures drawn on a random texture instead of a photograph.
        scale: Draw everything this many times larger; boxes stay in unscaled pixels.
    """
    columns, rows = grid
    image = background(rng, (TILE * columns, TILE * rows), photos, texture_share, scale)
    tiles = rng.permutation(columns * rows)
    card = _draw_table(rng, tiles[:1], columns, labels) if table else None
    if card:
        paste_table(image, card, scale)
    if rng.random() < clustered:
        others = tiles[1:] if len(tiles) > 1 else tiles  # not where the table is
        tiles = others[: int(rng.integers(2, 4))]
    looks = _choose_looks(rng, int(rng.integers(signs[0], signs[1] + 1)), rng.random() < repeated)
    looks += [(list(TAG_COLORS)[i], TAG) for i in rng.permutation(len(TAG_COLORS))[:tags]]
    borne = [labels[i] for i in rng.permutation(len(labels))[: len(looks)]]
    placed: list[Sign] = []
    taken = [card.box] if card else []
    for (color, shape), label in zip(looks, borne, strict=True):
        size = tag_size if shape == TAG else int(rng.choice(sizes))
        among = np.array([tile_of(placed[0].box, columns)]) if len(placed) == 1 else tiles
        box = _free_box(
            rng, among, columns, (size, size), step, [*([card.box] if card else []), *(sign.box for sign in placed)]
        )
        if box is None:  # the tiles are full: a picture with fewer signs
            continue
        sign = Sign(color, shape, label, box)
        rgb = np.array((TAG_COLORS if shape == TAG else COLORS)[color]) + rng.integers(-12, 13, 3)
        paste_sign(image, sign, scale, tuple(int(c) for c in np.clip(rgb, 0, 255)))
        placed.append(sign)
        taken.append(box)
    plates = tuple(sign for sign in placed if sign.shape == TAG)
    return Scene(image, grid, tuple(sign for sign in placed if sign.shape != TAG), plates, card)
