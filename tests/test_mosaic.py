"""The grid that InternVL's processor cut a picture by, read off the tiles."""

import numpy as np
import pytest
import torch
from conftest import encode, picture, prompt, small_model, tokenizer
from PIL import Image
from tile_pictures import KINDS, cut, draw

import ptp
from ptp.adapters.mosaic import Mosaics, grey, grids_of


def read(pixels: torch.Tensor) -> tuple[int, int]:
    return Mosaics(pixels).grid(tuple(range(len(pixels))))


def misread(kind: str, seeds: range, side: int) -> list[tuple]:
    """Pictures that are read wrong, those whose tiles and thumbnail are all alike left out: seed, true grid, grid read."""
    found = []
    for seed in seeds:
        pixels, grid = cut(draw(kind, seed, side), side)
        if (mine := read(pixels)) != grid and not torch.equal(pixels, pixels[:1].expand_as(pixels)):
            found.append((seed, grid, mine))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_the_grid_is_what_the_processor_cut_by(kind):
    assert not misread(kind, range(40), 112)


@pytest.mark.parametrize("kind", ["photo", "checkers", "vertical"])
def test_so_it_is_at_the_size_of_published_checkpoints(kind):
    assert not misread(kind, range(3), 448)


@pytest.mark.nightly
@pytest.mark.parametrize(("side", "count"), [(112, 500), (448, 60)])
@pytest.mark.parametrize("kind", KINDS)
def test_survey(kind, side, count):
    assert not misread(kind, range(count), side)


@pytest.mark.parametrize("period", [2, 3, 4, 6, 7, 8, 9, 16, 28])
@pytest.mark.parametrize("size", [(448, 336), (336, 448), (611, 173)])
def test_fine_patterns_are_read_off_the_seams_and_the_resampled_mosaic(period, size):
    width, height = size
    y, x = np.mgrid[:height, :width]
    for pattern in (x, y, x + y, x + 2 * y, x // period * period + y // period * period):
        shown = Image.fromarray(np.where(pattern % period < period / 2, 255, 0).astype(np.uint8)).convert("RGB")
        pixels, grid = cut(shown, 112)
        if not bool((pixels[:-1] == pixels[:1]).all()):
            assert read(pixels) == grid


def test_what_cannot_be_told_is_the_squarest():
    pixels, grid = cut(Image.new("RGB", (1200, 100), "red"), 112)
    assert grid == (12, 1) and read(pixels) == (3, 4) == grids_of(12)[0]


def test_colours_of_one_luminance_are_told_apart():
    stripes = np.where(np.arange(400)[:, None] // 5 % 2, (0, 130, 0), (255, 0, 0)).astype(np.uint8)
    pixels, grid = cut(Image.fromarray(np.broadcast_to(stripes, (300, 400, 3)).copy()), 112)
    assert read(pixels) == grid
    assert int(grey(pixels).max()) == 255


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_pictures_encoded_together_are_read_one_by_one_and_then_let_go(dtype):
    cuts = [cut(draw(kind, 3, 112), 112) for kind in KINDS]
    mosaics, first, asked = Mosaics(torch.cat([pixels for pixels, _ in cuts]).to(dtype)), 0, []
    for pixels, grid in cuts:
        asked.append((tuple(range(first, first + len(pixels))), grid))
        first += len(pixels)
    for _ in range(2):
        assert [mosaics.grid(units) for units, _ in asked] == [grid for _, grid in asked]
        assert not any(tile is not None for tile in mosaics._tiles)
    with pytest.raises(ValueError, match="Encode them again"):
        mosaics.grid(tuple(range(first)))


def test_the_trace_of_a_striped_picture_has_its_grid():
    stripes = Image.fromarray(np.tile(np.where(np.arange(448) % 7 < 3, 230, 20).astype(np.uint8), (336, 1))).convert("RGB")
    model, inputs = small_model(), encode(prompt(stripes, picture(0, (1, 1)), picture(1, (2, 3))))
    with torch.no_grad(), ptp.PyramidPruner()(model, tokenizer()) as trace:
        model(**inputs)
        assert [image.grid for image in trace.images] == [(4, 3), None, (2, 3)]
        model.generate(**inputs, max_new_tokens=1)
        assert [image.grid for image in trace.images] == [(4, 3), None, (2, 3)]
