"""Drawing a picture's trace onto the picture: heat maps, budgets and kept tokens."""

import base64
import functools
import io

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..runtime import ImageTrace

WIDTH = 560
"""Width of an overlay in pixels."""
INFERNO = (
    (0, 0, 4), (10, 7, 34), (30, 12, 69), (56, 9, 98), (81, 14, 108), (105, 22, 110), (128, 31, 108), (152, 39, 102),
    (176, 49, 91), (198, 61, 77), (217, 77, 61), (233, 97, 43), (244, 121, 24), (250, 148, 7), (252, 176, 20), (248, 205, 55),
    (242, 234, 105), (252, 255, 164),
)  # fmt: skip
"""Every fifteenth colour of matplotlib's map of that name (of S. van der Walt and N. Smith, CC0), from dark to bright."""


def token_map(image: ImageTrace, values: np.ndarray, size: tuple[int, int], thumbnail: bool = False) -> np.ndarray:
    """Lay one value per visual token out as the picture shows them.

    Args:
        image: The trace the values belong to.
        values: (N,) in token order.
        size: (width, height) in pixels.
        thumbnail: Take the tokens of the thumbnail instead of those of the tiles.

    Returns:
        (height, width): at each pixel the value of the token that shows it; 0 where none does.
    """
    width, height = size
    x, y = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
    shown, start = np.zeros((height, width), values.dtype), 0
    for number, tile in enumerate(image.layout.tiles):
        block = values[start : start + tile.tokens].reshape(tile.rows, tile.columns)
        start += tile.tokens
        if tile.tokens and thumbnail == (image.layout.thumbnail and number == len(image.sizes) - 1):
            left, top, right, bottom = tile.box
            column = np.floor((x - left) / (right - left) * tile.columns).astype(int)
            row = np.floor((y - top) / (bottom - top) * tile.rows).astype(int)
            here_x, here_y = ((at >= 0) & (at < count) for at, count in ((column, tile.columns), (row, tile.rows)))
            shown[np.ix_(here_y, here_x)] = block[row[here_y]][:, column[here_x]]
    return shown


def heat(picture: Image.Image, values: np.ndarray, low: float | None = None) -> Image.Image:
    """Blend a (height, width) map over the grey picture: dark is `low` (None: the map's minimum), yellow its maximum."""
    bottom = float(values.min()) if low is None else low
    span = float(values.max()) - bottom
    scaled = (values - bottom) / span if span > 0 else np.zeros_like(values)
    places = np.linspace(0, 1, len(INFERNO))
    colors = np.stack([np.interp(scaled, places, channel) for channel in zip(*INFERNO, strict=True)], axis=-1)
    grey = np.asarray(picture.convert("L"), np.float32)[..., None]
    return Image.fromarray((0.35 * grey + 0.65 * colors).astype(np.uint8))


def keep(picture: Image.Image, kept: np.ndarray) -> Image.Image:
    """Show what kept tokens show, a (height, width) mask, as it is, and the rest dimmed and grey."""
    mask = kept.astype(np.float32)[..., None]
    pixels = np.asarray(picture, np.float32)
    dim = pixels.mean(axis=-1, keepdims=True) * 0.28 + 12
    return Image.fromarray((mask * pixels + (1 - mask) * dim).astype(np.uint8))


def draw_grid(picture: Image.Image, image: ImageTrace) -> None:
    """Draw the edges between the tiles (in place)."""
    draw = ImageDraw.Draw(picture)
    for left, top, right, bottom in _pixel_boxes(picture, image):
        if right < picture.width - 1:
            draw.line((right, top, right, bottom), fill=(255, 255, 255), width=1)
        if bottom < picture.height - 1:
            draw.line((left, bottom, right, bottom), fill=(255, 255, 255), width=1)


def _pixel_boxes(picture: Image.Image, image: ImageTrace) -> list[tuple[float, float, float, float]]:
    """The tiles without the thumbnail, in pixels of the picture."""
    tiles = image.layout.tiles[: len(image.sizes) - image.layout.thumbnail]
    (width, height) = picture.size
    return [(t.box[0] * width, t.box[1] * height, t.box[2] * width, t.box[3] * height) for t in tiles]


def _overlays(picture: Image.Image, image: ImageTrace) -> dict[str, tuple[Image.Image, Image.Image | None]]:
    """Title -> (overlay on the picture, overlay on its thumbnail), in reading order."""
    height = max(1, round(picture.height * WIDTH / picture.width))
    large = picture.convert("RGB").resize((WIDTH, min(height, 4 * WIDTH)), Image.Resampling.LANCZOS)
    small = large.resize((max(1, large.width // 4), max(1, large.height // 4)), Image.Resampling.LANCZOS)
    kept = np.zeros(image.num_tokens, bool)
    kept[image.kept.numpy()] = True
    share = np.array(image.budgets, np.float32) / np.maximum(image.sizes, 1)  # a tile in the padding has no tokens
    maps: dict[str, np.ndarray] = {"Kept tokens": kept, "Tile budgets": np.repeat(share, image.sizes)}
    titles = {"region": "Region saliency", "token": "Token saliency", "instruction": "Instruction", "fused": "Fused"}
    for name, score in image.scores.items():
        values = score.numpy()
        maps[titles.get(name, name)] = (
            np.repeat(values, image.sizes) if name == "region" or len(values) != image.num_tokens else values
        )
    overlays = {}
    for title, values in maps.items():
        counts = title in ("Tile budgets", "Region saliency")  # shares: zero is dark
        paint = keep if values.dtype == bool else functools.partial(heat, low=0.0 if counts else None)
        main = paint(large, token_map(image, values, large.size))
        draw_grid(main, image)
        if title == "Tile budgets":
            _write_budgets(main, image)
        # The thumbnail's region score is 1 by definition and its budget is its own: nothing to shade.
        shade = image.layout.thumbnail and not counts
        overlays[title] = (main, paint(small, token_map(image, values, small.size, thumbnail=True)) if shade else None)
    return overlays


def _write_budgets(picture: Image.Image, image: ImageTrace) -> None:
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(20)
    boxes = _pixel_boxes(picture, image)
    for (left, top, right, bottom), budget, size in zip(boxes, image.budgets, image.sizes, strict=False):
        if size == 0:
            continue
        center, text = ((left + right) / 2, (top + bottom) / 2), f"{budget}/{size}"
        draw.text(center, text, font=font, anchor="mm", fill=(255, 255, 255), stroke_width=3, stroke_fill=(0, 0, 0))


def figure(picture: Image.Image, image: ImageTrace) -> Image.Image:
    """The picture, its fused score and its kept tokens side by side, for documents."""
    overlays = _overlays(picture, image)
    large = overlays["Kept tokens"][0]
    panels = [picture.convert("RGB").resize(large.size, Image.Resampling.LANCZOS)]
    panels += [overlays[title][0] for title in ("Fused", "Kept tokens") if title in overlays]
    gap = 8
    canvas = Image.new("RGB", (len(panels) * large.width + (len(panels) - 1) * gap, large.height), "white")
    for number, panel in enumerate(panels):
        canvas.paste(panel, (number * (large.width + gap), 0))
    return canvas


def _data_uri(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def overlay_uris(picture: Image.Image, image: ImageTrace) -> list[dict[str, str | None]]:
    """The overlays of one picture as data URIs: dicts of title, main, thumbnail (None where there is none)."""
    return [
        {"title": title, "main": _data_uri(main), "thumbnail": None if small is None else _data_uri(small)}
        for title, (main, small) in _overlays(picture, image).items()
    ]
