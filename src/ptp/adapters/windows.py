"""Pictures that are not cut into tiles: windows over them are their regions."""

import itertools

import torch
from torch import Tensor

from .base import Layout, Tile


def windows(columns: int, rows: int, pixels: int, window: int) -> tuple[Layout, Tensor]:
    """A grid of about equal windows over a picture.

    Args:
        columns, rows: Its visual tokens. pixels: Side of the square that one of them shows.
        window: Wanted side of a window, in pixels.

    Returns:
        The layout, and (N,) the place of each of its tokens in the raster over the picture.
    """
    edges = []
    for tokens in (rows, columns):
        count = max(1, round(tokens * pixels / window))
        edges.append([tokens * i // count for i in range(count + 1)])
    tiles, order = [], []
    for (top, bottom), (left, right) in itertools.product(*(itertools.pairwise(axis) for axis in edges)):
        tiles.append(Tile(right - left, bottom - top, (left / columns, top / rows, right / columns, bottom / rows)))
        order.append((torch.arange(top, bottom)[:, None] * columns + torch.arange(left, right)).flatten())
    grid = (len(edges[1]) - 1, len(edges[0]) - 1)
    return Layout(tuple(tiles), grid if len(tiles) > 1 else None), torch.cat(order)
