"""A token's box is where its pixels come from, in every model family."""

import copy
import functools

import numpy as np
import pytest
import torch
from families import QUESTION, SIZES, Family, encode, model_of, photo, prune, pruner
from PIL import Image, ImageDraw

from ptp.adapters import adapter_for


@functools.cache
def patchwise(family: Family):
    """The family's model, in whose encoder no patch learns of another: a feature changes where its own pixels do."""
    model = copy.deepcopy(model_of(family))
    for name, parameter in adapter_for(model).vision.named_parameters():
        if any(part in name for part in ("out_proj", "attn.proj", "attention.projection_layer", "o_proj")):
            torch.nn.init.zeros_(parameter)
    return model


def with_disc(shown: Image.Image, box) -> Image.Image:
    """The picture with a disc inside a box given as fractions."""
    drawn = shown.copy()
    left, top, right, bottom = (edge * length for edge, length in zip(box, (*shown.size, *shown.size), strict=True))
    x, y, r = (left + right) / 2, (top + bottom) / 2, 0.3 * min(right - left, bottom - top)
    ImageDraw.Draw(drawn).ellipse((x - r, y - r, x + r, y + r), fill=(255, 60, 0))
    return drawn


@pytest.mark.parametrize("number", [0, 1])
def test_a_box_is_where_the_pixels_of_its_token_are(family, number):
    """A disc drawn into the box of a token changes that token's feature more than any other's of the tiles."""
    model, size = patchwise(family), tuple(4 * edge for edge in SIZES[number])
    plain = Image.blend(photo(number, size), Image.new("RGB", size, (128, 128, 128)), 0.8)
    inputs = encode(family, ([plain], QUESTION))
    _, trace = prune(model, inputs, pruner())
    (image,) = trace.images

    def features(shown):
        made = encode(family, ([shown], QUESTION))
        with torch.no_grad():
            seen = []
            handle = adapter_for(model).text.model.register_forward_pre_hook(
                lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
            )
            model(**made)
            handle.remove()
        return seen[0][0, image.positions]

    before = features(plain)
    thumbnail = image.sizes[-1] if image.layout.thumbnail else 0
    tiles = image.num_tokens - thumbnail
    chosen = np.random.default_rng(0).choice(tiles, min(tiles, 12), replace=False)
    for token in chosen.tolist():
        change = (features(with_disc(plain, image.boxes[token].tolist())) - before).norm(dim=-1)
        assert int(change[:tiles].argmax()) == token, (token, image.boxes[token], change.topk(4))
        if thumbnail:
            x, y = ((image.boxes[token][i] + image.boxes[token][i + 2]) / 2 for i in (0, 1))
            seen = image.boxes[tiles + int(change[tiles:].argmax())]
            slack = (seen[2:] - seen[:2]) / 2
            assert seen[0] - slack[0] <= x <= seen[2] + slack[0] and seen[1] - slack[1] <= y <= seen[3] + slack[1]
