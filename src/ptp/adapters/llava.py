"""LLaVA-NeXT (LLaVA 1.6) and LLaVA-OneVision in the Hugging Face format: one raster over all tiles, behind the thumbnail.

The thumbnail comes first in the prompt. The tokens of the tiles follow as one raster over all tiles, rows of the padding cut
off and each row ended by a newline token; LLaVA-OneVision also shrinks the raster. Newlines (and the padding) are no visual
tokens: they stay, so that what is kept of a row is still seen to end there (unless the method's `keep_structure` is off).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
from transformers.image_utils import ChannelDimension
from transformers.models.llava_next.modeling_llava_next import unpad_image

from ..errors import UnsupportedModelError
from .base import Adapter, Layout, Span, Tile, share_out
from .text import TextModel


@dataclass(frozen=True)
class Packed:
    """How the model lays out a picture.

    Attributes:
        tokens: Image tokens, newlines among them.
        order: (N,) place of each visual token among them, tile by tile and the thumbnail last.
        layout: Where they are on the picture.
    """

    tokens: int
    order: Tensor
    layout: Layout


class LlavaAdapter(Adapter):
    """LLaVA-NeXT: CLIP, its [CLS] read up to the layer that feeds the projector, the last but one. LLaVA-OneVision: SigLIP
    without [CLS]; several pictures in one prompt are not cut into tiles."""

    family = "LLaVA-NeXT / LLaVA-OneVision"
    model_types = ("llava_next", "llava_onevision")
    regions = "tiles and thumbnail (OneVision, several pictures: whole)"
    saliency = "[CLS] / received"
    line_ends = True
    independent_tiles = True

    def __init__(self, model: PreTrainedModel) -> None:
        self.config = config = model.config
        self.core = model.model
        self.vision = self.core.vision_tower
        self.text = TextModel(self.core.language_model, self.family)
        self.image_token_id = config.image_token_id
        kind = config.vision_config.model_type
        if kind not in ("clip_vision_model", "siglip_vision_model"):
            raise UnsupportedModelError(f"{self.family} with vision model {kind!r} is not supported. Supported: CLIP, SigLIP.")
        self.has_cls = kind == "clip_vision_model"
        strategy = config.vision_feature_select_strategy
        if strategy != ("default" if self.has_cls else "full"):
            raise UnsupportedModelError(
                f"vision_feature_select_strategy {strategy!r} does not fit {kind!r}: [CLS] would be laid out as a patch, or a "
                "patch lost. Use 'default' with CLIP and 'full' with SigLIP."
            )
        depth, chosen = len(self.vision.encoder.layers), config.vision_feature_layer
        self.vision_depth = max(depth + 1 + n if n < 0 else n for n in ([chosen] if isinstance(chosen, int) else chosen))
        self.side = config.vision_config.image_size // config.vision_config.patch_size
        self.packed = lru_cache(maxsize=128)(self._find)

    def about(self, inputs: Mapping[str, Any], window: int) -> Any:
        """((height, width), whether it is cut into tiles, OneVision's aspect ratio setting) of each picture."""
        sizes = [(int(height), int(width)) for height, width in inputs["image_sizes"]]
        counts = inputs.get("batch_num_images")
        cut = [True] * len(sizes) if counts is None else [int(n) == 1 for n in counts for _ in range(int(n))]
        ratio = inputs.get("vision_aspect_ratio") or getattr(self.config, "vision_aspect_ratio", None)
        return [(size, tiles, ratio) for size, tiles in zip(sizes, cut, strict=True)]

    def locate(self, input_ids: Tensor, tokens: Tensor, about: Any, pixels: Sequence[Tensor]) -> list[Span]:
        packed = [self.packed(picture) for picture in about]
        spans, first = [], 0
        places = share_out(tokens, [one.tokens for one in packed])
        for (row, here), one, picture in zip(places, packed, about, strict=True):
            end = first + len(one.layout.tiles)
            units = (*range(first + 1, end), first)  # the thumbnail comes first
            first = end
            spans.append(Span(row, here[one.order], units, one.layout, picture))
        return spans

    def pool(self, scores: Sequence[Tensor], span: Span) -> Tensor:
        """Scores go the way of the features: through the model's own packing."""
        *tiles, thumbnail = scores
        values = torch.stack([thumbnail, *tiles])[..., None]
        return self._pack(values, span.about, values.new_zeros(1))[:, 0][self.packed(span.about).order.to(values.device)]

    def _pack(self, features: Tensor, about: Any, newline: Tensor) -> Tensor:
        """(image tokens, C) of one picture's (T, P, C) features, the thumbnail's first."""
        strategy = {"vision_feature_select_strategy": self.config.vision_feature_select_strategy}
        told = strategy if about[2] is None else {"vision_aspect_ratio": about[2]}
        (packed,), _ = self.core.pack_image_features([features], [about[0]], image_newline=newline, **told)
        return packed

    def _find(self, about: Any) -> Packed:
        """Where the model puts a picture's tokens, by its own packing and unpadding."""
        (height, width), cut, _ = about
        side, size = self.side, self.config.vision_config.image_size
        patch = self.config.vision_config.patch_size
        whole = Tile(side, side, (0.0, 0.0, side * patch / size, side * patch / size))
        own = torch.arange(side * side)
        if not cut:
            return Packed(side * side + 1, own, Layout((whole,)))
        canvas = select_best_resolution((height, width), self.config.image_grid_pinpoints)
        down, across = canvas[0] // size, canvas[1] // size
        blank = torch.zeros(1 + down * across, len(own), 1)
        ends = self._pack(blank, about, torch.ones(1))[len(own) :, 0]  # 1 at the newline that ends each row
        rows = int(ends.sum())
        line = len(ends) // max(rows, 1)  # a row's tokens, its newline among them; nothing but newlines where it shows none
        shown = get_patch_output_size(np.broadcast_to(0, (1, height, width)), canvas, ChannelDimension.FIRST)
        uncut = torch.empty(1, down * side, across * side)
        patches = unpad_image(uncut, (height, width)).shape[1:]  # the padding is cut off on both sides alike
        axes = ((max(line - 1, 0), across, patches[1], canvas[1], shown[1]), (rows, down, patches[0], canvas[0], shown[0]))
        columns, lines = (self._edges(*axis) for axis in axes)
        order, layout = [], []
        for top, bottom, y0, y1 in lines:
            for left, right, x0, x1 in columns:
                here = (torch.arange(top, bottom)[:, None] * line + torch.arange(left, right)).flatten()
                order.append(here + len(own))
                layout.append(Tile(right - left, bottom - top, (x0, y0, x1, y1)))
        return Packed(len(own) + len(ends), torch.cat([*order, own]), Layout((*layout, whole), (across, down), thumbnail=True))

    def _edges(self, tokens: int, tiles: int, patches: int, canvas: int, shown: int) -> list[tuple[int, int, float, float]]:
        """(first token, last + 1, begin, end) of each tile along one axis; begin and end as fractions of the picture.

        A tile that lies in the padding has no token. Nor has any tile of a picture so thin that unpadding leaves no patch.

        Args:
            tokens: Of the raster. patches: Of it before it was shrunk, those in the middle of all tiles.
            canvas, shown: Pixels of the tiles together, and of the picture in them.
        """
        size, patch = self.config.vision_config.image_size, self.config.vision_config.patch_size
        cell, start = patches / max(tokens, 1), (tiles * self.side - patches) / 2
        centers = [start + (token + 0.5) * cell for token in range(tokens)]
        pad, found = (canvas - shown) // 2, []
        for tile in range(tiles):
            inside = [i for i, center in enumerate(centers) if math.floor(center / self.side) == tile]
            first, last = (inside[0], inside[-1] + 1) if inside else (0, 0)
            ends = [start + first * cell, start + last * cell] if inside else [tile * self.side] * 2
            begin, end = ((tile * size + (end - tile * self.side) * patch - pad) / shown for end in ends)
            found.append((first, last, begin, end))
        return found

    def unread_layers(self, inputs: Mapping[str, Any]) -> Sequence[nn.Module]:
        usual = inputs.get("vision_feature_layer") in (None, self.config.vision_feature_layer)
        return self.vision.encoder.layers[self.vision_depth :] if usual else ()

    def vision_embeddings(self) -> nn.Module:
        return self.vision.encoder.layers[self.vision_depth - 1]
