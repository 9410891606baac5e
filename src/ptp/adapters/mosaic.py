"""Which grid a picture was cut into, read off its tiles and its thumbnail: InternVL is not told.

The thumbnail is the picture as the tiles show it together, shrunk by the processor's own resampling, and neighbouring tiles
go on in each other. What is compared is one grey value per pixel.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

COARSE = 28
"""Side of the tiles in the cheap comparison; it divides those of 448 and 112 pixels."""
CLEAR = 0.1
"""The cheap comparison decides where the best grid's error is at most this share of the next one's."""
EVIDENCE = 0.02
"""And where this next one is at least this share of the variance of the pixels: fine patterns leave less when shrunk."""
EXACT = 0.01
"""Mean square error, in grey levels, below which a mosaic fits as well as can be."""
ROUNDING = 0.1
"""Variance, in grey levels, that rounding to whole ones adds: about 1/12."""
UNEVEN = 10.0
"""Variance, in grey levels, below which a seam is as even as can be."""
PIECES, REACH = 12, 4
"""Columns of each tile that its texture is learned from, and pixels that predict the next one."""
SAME = 1e-6
"""Differences of scores that are none."""

Grid = tuple[int, int]
"""(columns, rows)."""


class Mosaics:
    """The grey tiles of one run of the encoder, until the grids of its pictures have been read off them.

    A byte per pixel, and let go when a prompt first uses the pictures: encoded pictures that are kept hold none of it.
    """

    def __init__(self, pixels: Tensor) -> None:
        self._tiles: list[Tensor | None] = list(grey(pixels).unbind())
        self._grids: dict[tuple[int, ...], Grid] = {}

    def grid(self, units: tuple[int, ...]) -> Grid:
        """The grid of the picture that these units show, its thumbnail the last of them.

        Raises:
            ValueError: they were parts of other pictures before.
        """
        tiles = [tile for unit in units if (tile := self._tiles[unit]) is not None]
        if units not in self._grids and len(tiles) == len(units):
            self._grids[units] = read_grid(torch.stack(tiles)) if len(units) > 2 else (1, 1)
            for unit in units:  # only now: another thread may ask at the same time
                self._tiles[unit] = None
        if units not in self._grids:
            raise ValueError(
                "The encoded pictures were first used in a prompt that divides their tiles otherwise. Encode them again, and "
                "build prompts with the model's own processor."
            )
        return self._grids[units]


@torch.no_grad()
def grey(pixels: Tensor) -> Tensor:
    """(T, height, width) uint8 of (T, C, height, width): by the mixture of the channels that differs most, over 0 to 255.

    No two colours that differ much become one grey, as they might by luminance.
    """
    pixels = pixels.float()
    some = pixels[:, :, ::5, ::3].transpose(0, 1).flatten(1)
    some = some - some.mean(dim=1, keepdim=True)
    axis = torch.linalg.eigh((some @ some.T / some.shape[1]).cpu())[1][:, -1].tolist()
    values = sum(
        (weight * channel for weight, channel in zip(axis, pixels.unbind(dim=1), strict=True)), start=pixels.new_zeros(())
    )
    low, high = values.aminmax()
    return ((values - low) * (255 / (high - low).clamp_min(torch.finfo(values.dtype).tiny))).round_().to(torch.uint8)


def grids_of(tiles: int) -> list[Grid]:
    """Every grid of so many tiles, the squarest first."""
    found = [(columns, tiles // columns) for columns in range(1, tiles + 1) if tiles % columns == 0]
    return sorted(found, key=lambda grid: abs(grid[0] - grid[1]))


@torch.no_grad()
def read_grid(tiles: Tensor) -> Grid:
    """The grid of (T, height, width) grey tiles, the thumbnail the last of them.

    First by small copies. Where these leave a doubt, at full size: the error of each grid's mosaic, shrunk to the
    thumbnail's size as the processor shrinks, times how much worse pixels go on across its seams than inside the tiles.
    Where the pixels cannot tell (one colour; tiles alike, or patterns of a few pixels, that the thumbnail shows as one
    grey) it is a guess; of grids that fit equally the squarest is taken.

    Our own rule: right on all 6,583 pictures of the survey (`pytest -m nightly`) of more than one colour, and on 6,324 of
    6,325 that it was not made on.
    """
    if tiles.device.type not in ("cpu", "cuda"):
        tiles = tiles.cpu()  # elsewhere nothing is shrunk as the processor does
    grids, values = grids_of(len(tiles) - 1), tiles.float() - 127.5
    shrunk = [min(COARSE, side) for side in tiles.shape[1:]]
    small = F.interpolate(values[:, None], size=shrunk, mode="area")[:, 0]
    *errors, variance = torch.stack([*(_error(small, grid, "area") for grid in grids), values.var()]).tolist()
    best, second = sorted(errors)[:2]
    if best <= CLEAR * second and second >= EVIDENCE * variance:
        return grids[errors.index(best)]
    exact = torch.stack([_error(values, grid, "bicubic") for grid in grids])
    scores = ((exact + EXACT).log() + _seams(values[:-1], grids).log()).tolist()
    return next(grid for grid, score in zip(grids, scores, strict=True) if score <= min(scores) + SAME)


def _error(tiles: Tensor, grid: Grid, mode: str) -> Tensor:
    """Mean square difference of the thumbnail, the last tile, and the others laid out in a grid and shrunk to its size."""
    columns, rows = grid
    height, width = tiles.shape[1:]
    mosaic = tiles[:-1].view(rows, columns, height, width).transpose(1, 2).reshape(1, 1, rows * height, columns * width)
    shrunk = F.interpolate(mosaic, size=(height, width), mode=mode, antialias=mode == "bicubic")
    return (shrunk[0, 0] - tiles[-1]).square().mean()


def _seams(tiles: Tensor, grids: Sequence[Grid]) -> Tensor:
    """(grids,) mean over the seams of how much worse the pixels beyond are predicted than pixels inside the tiles.

    A prediction instead of a difference: the finest stripes go on by turning over at each pixel.
    """
    across, down = _continuity(tiles), _continuity(tiles.mT)
    height, width = tiles.shape[1:]
    means = []
    for columns, rows in grids:
        numbers = torch.arange(len(tiles)).view(rows, columns)
        beside, below = across[numbers[:, :-1], numbers[:, 1:]], down[numbers[:-1], numbers[1:]]
        pixels = beside.numel() * height + below.numel() * width
        means.append((beside.sum() * height + below.sum() * width) / pixels)
    return torch.stack(means)


def _continuity(tiles: Tensor) -> Tensor:
    """(T, T), at least 1: the error of the first column of the second tile, predicted from the last ones of the first.

    As a multiple of the error inside the tiles, where the prediction is learned.
    """
    width = tiles.shape[-1]
    places = torch.linspace(REACH, width - 1, PIECES, device=tiles.device).long()
    known = torch.stack([tiles[..., places - step] for step in range(1, REACH + 1)], dim=-1)  # (T, height, PIECES, REACH)
    known, wanted = F.pad(known, (0, 1), value=1.0).flatten(0, 2), tiles[..., places].flatten()
    gram = known.T @ known / len(known) + ROUNDING * torch.eye(REACH + 1, device=tiles.device)
    weights = torch.linalg.solve(gram.cpu(), (known.T @ wanted / len(known)).cpu()).to(tiles.device)
    inside = (known @ weights - wanted).square().mean()
    ends = torch.stack([tiles[..., width - step] for step in range(1, REACH + 1)], dim=-1)  # (T, height, REACH)
    beyond = ends @ weights[:REACH] + weights[REACH]
    errors = (beyond[:, None] - tiles[None, ..., 0]).square().mean(dim=-1)
    return ((errors + UNEVEN) / (inside + UNEVEN)).clamp_min(1)
