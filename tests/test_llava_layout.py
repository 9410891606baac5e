"""LLaVA's raster of tokens, for pictures of any shape: whatever the model packs is where the adapter says it is."""

import functools

import numpy as np
import pytest
import torch
from families import FAMILIES, QUESTION, SMALL, encode, model_of, photo, prune, pruner
from PIL import Image
from transformers.image_processing_utils import select_best_resolution

from ptp.adapters import adapter_for
from ptp.methods import METHODS
from ptp.methods.region_saliency import REGIONS
from ptp.report import figure
from ptp.testing import Scale

PUBLISHED = Scale(hidden=16, layers=2, heads=1, mlp=16, text=SMALL.text | dict(num_hidden_layers=1), real=True)
SCALES = {"small": SMALL, "published": PUBLISHED}
LLAVAS = ("llava-next", "llava-onevision")
SIZES = (
    (1, 1), (1, 200), (200, 1), (2, 300), (300, 2), (3, 500), (640, 6), (9, 1700), (1700, 9), (2000, 17), (30, 30), (56, 57),
    (60, 60), (61, 59), (100, 180), (180, 100), (333, 334), (384, 384), (500, 120), (120, 500), (672, 336), (800, 600),
    (600, 800), (1152, 1151), (2304, 2304), (4000, 3000), (3000, 4000), (9000, 60), (60, 9000), (8000, 8000), (5000, 700),
)  # fmt: skip
"""(width, height) in pixels."""
THIN = ((300, 1), (1, 300), (600, 5), (5, 600), (400, 2))
"""Of these unpadding leaves no patch, or a single row or column of them."""


@functools.cache
def adapter_of(name: str, scale: str):
    return adapter_for(FAMILIES[name].build(SCALES[scale]))


def planted(adapter, size: tuple[int, int]) -> torch.Tensor:
    """(image tokens, 4) as the model packs them: x and y of each token as fractions of the picture, which view, newline."""
    (width, height), config = size, adapter.config
    side, edge, patch = adapter.side, config.vision_config.image_size, config.vision_config.patch_size
    canvas_height, canvas_width = select_best_resolution((height, width), config.image_grid_pinpoints)
    scale = min(canvas_width / width, canvas_height / height)
    shown = [min(int(np.ceil(n * scale)), c) for n, c in ((width, canvas_width), (height, canvas_height))]
    inside = (torch.arange(side) + 0.5) * patch
    down, across = canvas_height // edge, canvas_width // edge
    x, y = (
        (torch.cat([number * edge + inside for number in range(tiles)]) - (canvas - seen) // 2) / seen
        for tiles, canvas, seen in zip((across, down), (canvas_width, canvas_height), shown, strict=True)
    )
    ys, xs = torch.meshgrid(y, x, indexing="ij")
    raster = torch.stack([xs, ys, torch.ones_like(xs), torch.zeros_like(xs)], dim=-1)
    tiles = raster.view(down, side, across, side, 4).transpose(1, 2).reshape(down * across, side * side, 4)
    ys, xs = torch.meshgrid(inside / edge, inside / edge, indexing="ij")
    thumbnail = torch.stack([xs, ys, torch.zeros_like(xs), torch.zeros_like(xs)], dim=-1).view(1, side * side, 4)
    settings = {"vision_feature_select_strategy": "default"}
    if config.model_type == "llava_onevision":
        settings = {"vision_aspect_ratio": config.vision_aspect_ratio}
    newline = torch.tensor([0.0, 0.0, 0.0, 1.0])
    features, sizes = [torch.cat([thumbnail, tiles])], torch.tensor([[height, width]])
    (packed,), _ = adapter.core.pack_image_features(features, sizes, image_newline=newline, **settings)
    return packed


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", LLAVAS)
@pytest.mark.parametrize("size", SIZES)
def test_every_token_is_where_the_model_packs_it(name, scale, size):
    adapter = adapter_of(name, scale)
    packed, found = (
        planted(adapter, size),
        adapter.packed((size[::-1], True, getattr(adapter.config, "vision_aspect_ratio", None))),
    )
    assert found.tokens == len(packed)
    visual = packed[found.order]
    assert not visual[:, 3].any() and len(found.order) == int((packed[:, 3] == 0).sum()), "newlines are no visual tokens"
    assert len(found.order.unique()) == len(found.order) == found.layout.tokens
    boxes = found.layout.boxes
    thumbnail = found.layout.sizes[-1]
    assert bool((visual[:-thumbnail, 2] > 0.9).all()) and not visual[-thumbnail:, 2].any()
    centers, extents = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    # Half a token: a shrunk raster averages over the pixels at the edge of tiles that are in no patch.
    assert bool(((centers - visual[:, :2]).abs() <= 0.5 * extents + 1e-5).all())
    whole = (centers - visual[:, :2]).abs()[-thumbnail:]
    assert float(whole.max()) < 1e-5
    for tile, part in zip(found.layout.tiles, centers.split(found.layout.sizes), strict=True):
        raster = part.view(tile.rows, tile.columns, 2)
        assert bool((raster[1:, :, 1] > raster[:-1, :, 1]).all()) and bool((raster[:, 1:, 0] > raster[:, :-1, 0]).all())


@pytest.mark.parametrize("name", LLAVAS)
@pytest.mark.parametrize("size", [(900, 5), (7, 900), (300, 40), (120, 260)])
def test_a_box_of_a_thin_picture_is_where_its_pixels_are(name, size):
    """By the processor of published checkpoints: a picture of its own coordinates, averaged patch by patch."""
    family, adapter, (width, height) = FAMILIES[name], adapter_of(name, "published"), size
    y, x = np.mgrid[:height, :width]
    shown = np.stack([255 * (x + 0.5) / width, 255 * (y + 0.5) / height, np.full_like(x, 255.0)], axis=-1)
    plain = {"do_normalize": False, "return_tensors": "pt"}
    made = family.processor(PUBLISHED).image_processor([Image.fromarray(shown.round().astype(np.uint8))], **plain)
    patch, side = adapter.config.vision_config.patch_size, adapter.side
    units = made["pixel_values"][0].float()[..., : side * patch, : side * patch]
    features = torch.nn.functional.avg_pool2d(units, patch).flatten(2).transpose(1, 2)
    about = adapter.about({**made, "batch_num_images": None}, 448)[0]
    found = adapter.packed(about)
    visual = adapter._pack(features, about, torch.zeros(3))[found.order]
    boxes, tiles = found.layout.boxes, found.layout.tokens - found.layout.sizes[-1]
    inside = ((boxes[:, :2] >= 0) & (boxes[:, 2:] <= 1)).all(dim=1) & (visual[:, 2] > 0.99)
    error = ((boxes[:, :2] + boxes[:, 2:]) / 2 - visual[:, :2]).abs()[inside]
    assert int(inside[:tiles].sum()) > 0 or min(size) < 10
    pixel = torch.tensor([1 / width, 1 / height])
    assert bool((error < 0.01 + 0.5 * pixel).all()), "half a pixel: beyond the centers of the outermost ones nothing changes"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", LLAVAS)
def test_every_method_prunes_thin_pictures(name, method):
    """In a batch, one of them beside another picture in the same prompt; the report can be drawn."""
    family, model = FAMILIES[name], model_of(FAMILIES[name])
    pictures = [photo(number, size) for number, size in enumerate(THIN)]
    prompts = [([one], QUESTION) for one in pictures] + [([pictures[0], photo(9, (90, 70))], "And here?")]
    inputs = encode(family, *prompts)
    with torch.no_grad():
        model(**inputs)
    for keep in (0.02, 0.3):
        _, trace = prune(model, inputs, pruner(method, keep_ratio=keep))
        assert [image.row for image in trace.images] == [0, 1, 2, 3, 4, 5, 5]
        for image in trace.images:
            assert len(image.kept) == sum(image.budgets) == max(1, round(keep * image.num_tokens))
            assert all(0 <= budget <= size for budget, size in zip(image.budgets, image.sizes, strict=True))
            assert all(bool(score.isfinite().all()) for score in image.scores.values())
    assert figure(pictures[0], trace.images[0]).size


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("name", LLAVAS)
def test_tiles_without_tokens_have_no_saliency(name, region):
    family, model = FAMILIES[name], model_of(FAMILIES[name])
    inputs = encode(family, *(([photo(number, size)], QUESTION) for number, size in enumerate(THIN)))
    for settings in ({"scope": "tile", "normalize": "tile"}, {"region_alpha": 0.0, "thumbnail_keep": 0.1}):
        _, trace = prune(model, inputs, pruner(region=region, **settings))
        for image in trace.images:
            assert len(image.kept) == sum(image.budgets) == max(1, round(0.3 * image.num_tokens))
            assert all(bool(score.isfinite().all()) for score in image.scores.values())
