"""Overlays put every visual token where it is on the picture; the page escapes and renders."""

import dataclasses

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from PIL import Image

from ptp.adapters.base import tiled
from ptp.report import Answer, Page, figure, write_page
from ptp.report.overlay import heat, keep, token_map
from ptp.runtime import ImageTrace, PrefillTrace


def trace_of(grid: tuple[int, int] | None, kept: list[int]) -> ImageTrace:
    tiles = 1 if grid is None else grid[0] * grid[1] + 1
    tokens = 16 * tiles
    budgets = torch.bincount(torch.tensor(kept) // 16, minlength=tiles).tolist()
    scores = {"region": torch.rand(tiles), "fused": torch.rand(tokens)}
    layout = tiled(grid or (1, 1), 4, 4, thumbnail=grid is not None)
    return ImageTrace(0, layout, budgets, torch.tensor(kept), torch.arange(tokens), scores)


@pytest.mark.parametrize("grid", [(3, 2), (1, 2), (4, 3)])
def test_tokens_land_on_their_pixels(grid):
    """Every token by itself, against arithmetic on its tile's place: nothing else on the picture stays bright."""
    columns, rows = grid
    picture = Image.new("RGB", (columns * 40, rows * 40), (200, 100, 50))
    for token in range(16 * columns * rows):
        tile, place = divmod(token, 16)
        image, chosen = trace_of(grid, [token]), np.arange(16 * (columns * rows + 1)) == token
        shown = token_map(image, chosen, picture.size)
        assert not token_map(image, chosen, picture.size, thumbnail=True).any()
        left, top = tile % columns * 40 + place % 4 * 10, tile // columns * 40 + place // 4 * 10
        bright = np.asarray(keep(picture, shown))[..., 0] == 200
        expected = np.zeros_like(bright)
        expected[top : top + 10, left : left + 10] = True
        assert (bright == expected).all()


def test_the_thumbnail_and_a_single_tile_have_maps_of_their_own():
    values = np.arange(16 * 3)
    image = trace_of((2, 1), [0])
    assert token_map(image, values, (8, 4))[:, 4:].tolist() == values[16:32].reshape(4, 4).tolist()
    assert token_map(image, values, (4, 4), thumbnail=True).tolist() == values[32:].reshape(4, 4).tolist()
    image = trace_of(None, [0])
    assert token_map(image, values[:16], (4, 4)).tolist() == values[:16].reshape(4, 4).tolist()
    assert not token_map(image, values[:16], (4, 4), thumbnail=True).any()


def test_heat_is_darkest_at_its_low_end_and_never_divides_by_zero():
    picture = Image.new("RGB", (20, 20), (128, 128, 128))
    ramp = np.asarray(heat(picture, np.arange(20.0)[None].repeat(20, axis=0)), float).sum(axis=-1)
    assert ramp[0, 0] < ramp[0, 19]
    assert np.isfinite(np.asarray(heat(picture, np.zeros((20, 20))), float)).all()


def test_heat_has_the_colours_of_inferno():
    """Drawn over white in shares of 0.35 and 0.65; matplotlib, which has the map, is not needed to draw it."""
    ramp = np.linspace(0, 1, 256)[None]
    shown = np.asarray(heat(Image.new("RGB", (256, 1), (255, 255, 255)), ramp), float)[0]
    expected = 0.35 * 255 + 0.65 * 255 * colormaps["inferno"](np.arange(256))[:, :3]
    assert np.abs(shown - expected).max() < 5


@pytest.mark.parametrize("size", [(640, 480), (8, 700), (700, 8)])
def test_a_page_of_any_shape_is_escaped_and_self_contained(tmp_path, size):
    evil = "<script>alert('1')</script>"
    image = dataclasses.replace(trace_of((3, 2), [0, 5, 40]), instruction=evil)
    trace = PrefillTrace(images=[image], visual_tokens=(112, 3))
    answer = Answer(evil, evil, "no", 0.03, (112, 3), 57.5, (2048, 100), (0.1, 0.05), (0.3, 0.2))
    page = Page(evil, [answer], [(evil, [Image.new("RGB", size)], trace)], {evil: evil})
    write_page(page, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "<script" not in text and text.count("&lt;script&gt;") == 8
    assert "112 → 3" in text and "100.0 → 50.0 ms" in text and "300.0 → 200.0 ms" in text
    assert figure(Image.new("RGB", size), image).width == 3 * 560 + 16


def test_pages_tell_that_answers_differ(tmp_path):
    row = Answer("q", "a", "b", 0.5, (2, 1), 1.5, (2, 1), (1.0, 1.0), (2.0, 2.0))
    write_page(Page("t", [row]), tmp_path / "page.html")
    assert 'class="text differs"' in (tmp_path / "page.html").read_text()
