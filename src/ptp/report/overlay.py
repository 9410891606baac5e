"""Drawing a picture's trace onto the picture: heat maps, budgets and kept tokens."""

import base64
import functools
import io

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..runtime import ImageTrace

WIDTH = 560
"""Width of an overlay in pixels."""


def split_tiles(image: ImageTrace, values: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Lay out one value per visual token as the picture shows them.

    Args:
        image: The trace the values belong to.
        values: (N,) in token order.

    Returns:
        (rows * n, columns * n) map of the tiles, and the (n, n) map of the thumbnail (None for a single tile), where a
        tile has n x n tokens.
    """
    side = round(image.sizes[0] ** 0.5)
    tiles = values.reshape(len(image.sizes), side, side)
    if image.grid is None:
        return tiles[0], None
    columns, rows = image.grid
    mosaic = tiles[:-1].reshape(rows, columns, side, side).swapaxes(1, 2).reshape(rows * side, columns * side)
    return mosaic, tiles[-1]


def _stretch(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Nearest-neighbour enlargement of a map to (width, height) pixels."""
    rows = np.arange(size[1]) * values.shape[0] // size[1]
    columns = np.arange(size[0]) * values.shape[1] // size[0]
    return values[rows][:, columns]


def heat(picture: Image.Image, values: np.ndarray, low: float | None = None) -> Image.Image:
    """Blend a map over the grey picture: dark is `low` (None: the map's minimum), yellow is its maximum."""
    bottom = float(values.min()) if low is None else low
    span = float(values.max()) - bottom
    scaled = (values - bottom) / span if span > 0 else np.zeros_like(values)
    colors = matplotlib.colormaps["inferno"](_stretch(scaled, picture.size))[..., :3] * 255
    grey = np.asarray(picture.convert("L"), np.float32)[..., None]
    return Image.fromarray((0.35 * grey + 0.65 * colors).astype(np.uint8))


def keep(picture: Image.Image, kept: np.ndarray) -> Image.Image:
    """Show kept tokens as they are and dropped ones dimmed and grey."""
    mask = _stretch(kept.astype(np.float32), picture.size)[..., None]
    pixels = np.asarray(picture, np.float32)
    dim = pixels.mean(axis=-1, keepdims=True) * 0.28 + 12
    return Image.fromarray((mask * pixels + (1 - mask) * dim).astype(np.uint8))


def draw_grid(picture: Image.Image, image: ImageTrace) -> None:
    """Draw the edges of the tiles (in place)."""
    columns, rows = image.grid or (1, 1)
    draw = ImageDraw.Draw(picture)
    for c in range(1, columns):
        draw.line((c * picture.width / columns, 0, c * picture.width / columns, picture.height), fill=(255, 255, 255), width=1)
    for r in range(1, rows):
        draw.line((0, r * picture.height / rows, picture.width, r * picture.height / rows), fill=(255, 255, 255), width=1)


def _overlays(picture: Image.Image, image: ImageTrace) -> dict[str, tuple[Image.Image, Image.Image | None]]:
    """Title -> (overlay on the picture, overlay on its thumbnail), in reading order."""
    height = max(1, round(picture.height * WIDTH / picture.width))
    large = picture.convert("RGB").resize((WIDTH, min(height, 4 * WIDTH)), Image.Resampling.LANCZOS)
    small = large.resize((max(1, large.width // 4), max(1, large.height // 4)), Image.Resampling.LANCZOS)
    kept = np.zeros(image.num_tokens, bool)
    kept[image.kept.numpy()] = True
    share = np.array(image.budgets, np.float32) / np.array(image.sizes)
    maps: dict[str, np.ndarray] = {"Kept tokens": kept, "Tile budgets": np.repeat(share, image.sizes)}
    titles = {"region": "Region saliency", "token": "Token saliency", "instruction": "Instruction", "fused": "Fused"}
    for name, score in image.scores.items():
        values = score.numpy()
        maps[titles.get(name, name)] = np.repeat(values, image.sizes) if len(values) == len(image.sizes) else values
    overlays = {}
    for title, values in maps.items():
        counts = title in ("Tile budgets", "Region saliency")  # shares: zero is dark
        paint = keep if values.dtype == bool else functools.partial(heat, low=0.0 if counts else None)
        tiles, thumbnail = split_tiles(image, values)
        main = paint(large, tiles)
        draw_grid(main, image)
        if title == "Tile budgets":
            _write_budgets(main, image)
        # The thumbnail's region score is 1 by definition and its budget is its own: nothing to shade.
        overlays[title] = (main, None if thumbnail is None or counts else paint(small, thumbnail))
    return overlays


def _write_budgets(picture: Image.Image, image: ImageTrace) -> None:
    columns, rows = image.grid or (1, 1)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans-Bold.ttf", 18)
    for tile in range(columns * rows):
        center = ((tile % columns + 0.5) * picture.width / columns, (tile // columns + 0.5) * picture.height / rows)
        text = f"{image.budgets[tile]}/{image.sizes[tile]}"
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
