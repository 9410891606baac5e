"""Pictures that come whole, at their own size, the patches of all of them packed into one sequence: what such families share.

A unit is a picture, or a frame of a video; a visual token is a square of `merge` x `merge` patches.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .base import Layout, Span, Tile, share_out


@dataclass(frozen=True)
class Grid:
    """A picture or a video as the encoder takes it.

    Attributes:
        frames, rows, columns: Patches; a picture has one frame.
        layout: Of its visual tokens.
        order: (N,) place of each of these in the raster over the picture, frame by frame.
    """

    frames: int
    rows: int
    columns: int
    layout: Layout
    order: Tensor


def grids_of(inputs: Mapping[str, Any], merge: int, pixels: int, window: int) -> list[Grid]:
    """The pictures of one call of the encoding method, from its arguments.

    Args:
        inputs: With `image_grid_thw` or `video_grid_thw`. merge: Patches along a side of a visual token.
        pixels: Along that side. window: Wanted side of a region, in pixels.
    """
    if "video_grid_thw" in inputs:
        return [_video(t, h, w, merge) for t, h, w in inputs["video_grid_thw"].tolist()]
    return [_picture(t, h, w, merge, pixels, window) for t, h, w in inputs["image_grid_thw"].tolist()]


def _video(frames: int, rows: int, columns: int, merge: int) -> Grid:
    """Frames are regions; each of them shows the whole picture."""
    frame = Tile(columns // merge, rows // merge)
    return Grid(frames, rows, columns, Layout((frame,) * frames, video=True), torch.arange(frames * frame.tokens))


def _picture(frames: int, rows: int, columns: int, merge: int, pixels: int, window: int) -> Grid:
    """Regions are a grid of windows over the picture."""
    height, width = rows // merge, columns // merge
    edges = []
    for tokens in (height, width):
        count = max(1, round(tokens * pixels / window))
        edges.append([tokens * i // count for i in range(count + 1)])
    tiles, order = [], []
    for (top, bottom), (left, right) in itertools.product(*(itertools.pairwise(axis) for axis in edges)):
        tiles.append(Tile(right - left, bottom - top, (left / width, top / height, right / width, bottom / height)))
        order.append((torch.arange(top, bottom)[:, None] * width + torch.arange(left, right)).flatten())
    grid = (len(edges[1]) - 1, len(edges[0]) - 1)
    return Grid(frames, rows, columns, Layout(tuple(tiles), grid if len(tiles) > 1 else None), torch.cat(order))


def spans_of(tokens: Tensor, about: Sequence[Grid]) -> list[Span]:
    """Where the pictures are among the True entries of (B, S) `tokens`.

    Raises:
        ValueError: the image tokens are not those of whole pictures.
    """
    spans, first = [], 0
    for (row, here), grid in zip(share_out(tokens, [len(grid.order) for grid in about]), about, strict=True):
        spans.append(Span(row, here[grid.order], tuple(range(first, first + grid.frames)), grid.layout, grid))
        first += grid.frames
    return spans


def lengths_of(about: Sequence[Grid]) -> list[int]:
    """Patches of each unit."""
    return [grid.rows * grid.columns for grid in about for _ in range(grid.frames)]


def sizes_of(about: Sequence[Grid], device: torch.device) -> Tensor:
    """(pictures, 3) int64: frames, rows and columns of patches, as the encoder is told them."""
    return torch.tensor([[grid.frames, grid.rows, grid.columns] for grid in about], device=device)


def pairs_of(queries: Tensor, keys: Tensor, about: Sequence[Grid]) -> list[tuple[Tensor, Tensor]]:
    """(1, H, P, D) queries and keys of each unit, which sees itself, from (patches, H, D) of all."""
    units = zip(queries.split(lengths_of(about)), keys.split(lengths_of(about)), strict=True)
    return [(q.transpose(0, 1)[None], k.transpose(0, 1)[None]) for q, k in units]


def region_means(tokens: Tensor, about: Sequence[Grid]) -> list[Tensor]:
    """(regions, D) of each unit, from (tokens, D) of all pictures, each in raster order."""
    means: list[Tensor] = []
    for grid, own in zip(about, tokens.split([len(grid.order) for grid in about]), strict=True):
        parts = own[grid.order.to(own.device)].split(grid.layout.sizes)
        means += torch.stack([part.mean(dim=0) for part in parts]).chunk(grid.frames)
    return means
