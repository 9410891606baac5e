"""InternVL 2.5 / 3 / 3.5 in the Hugging Face format (`InternVLForConditionalGeneration`)."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..scoring import pool_pixel_shuffle
from .base import Adapter, Layout, QueryKey, Span, runs, tiled
from .mosaic import Mosaics
from .text import TextModel

FRAME = re.compile(r"Frame-?(\d+):\s*(<\S+>)?\s*$")
"""What is written before a frame of a video, counted from 1; an opening marker stands between it and the frame."""
FRAME_IDS = 16
"""Ids that are enough for it."""


class InternVLAdapter(Adapter):
    """Tiles in raster order with the thumbnail last; [CLS] first; visual tokens by 2 x 2 pixel shuffle.

    The model is given the frames of a video as pictures of one tile. The prompt numbers them ("Frame1: ", "Frame2: "); where
    its text can be read they are one picture, whose regions they are.
    """

    family = "InternVL"
    model_types = ("internvl",)
    regions = "tiles and thumbnail; videos: frames"
    saliency = "[CLS]"
    has_cls = True
    independent_tiles = True

    def __init__(self, model: PreTrainedModel) -> None:
        self.config = model.config
        self.core = model.model
        self.vision = self.core.vision_tower
        self.vision_depth = len(self.vision.encoder.layer)
        self.text = TextModel(self.core.language_model, self.family)
        self.image_token_id = self.config.image_token_id
        self.factor = round(1 / self.config.downsample_ratio)
        height, width = self.vision.embeddings.patch_embeddings.patch_shape
        self.columns, self.rows = width // self.factor, height // self.factor

    def about(self, inputs: Mapping[str, Any], window: int) -> Mosaics:
        """What the grids of its pictures can be read off: neither the model nor the prompt tells them."""
        return Mosaics(inputs["pixel_values"])

    def locate(self, input_ids: Tensor, tokens: Tensor, about: Any, pixels: Sequence[Tensor]) -> list[Span]:
        """Every unbroken run of image tokens is a picture, or a frame; `<img>` and `</img>` keep neighbours apart."""
        spans, first = [], 0
        per_tile = self.columns * self.rows
        for row, start, end in runs(tokens):
            tiles, rest = divmod(end - start, per_tile)
            if rest:
                raise ValueError(
                    f"A picture must be a whole number of tiles of {per_tile} visual tokens, got a run of "
                    f"{end - start} image tokens. Build the prompt with the model's own processor."
                )
            units = tuple(range(first, first + tiles))
            first += tiles
            grid, thumbnail = about.grid(units), tiles > 1
            layout = tiled(grid, self.columns, self.rows, thumbnail)
            spans.append(Span(row, torch.arange(start, end), units, layout))
        return self._with_videos(input_ids, spans)

    def _with_videos(self, input_ids: Tensor, spans: list[Span]) -> list[Span]:
        """Frames that are numbered one after another in a row become one span."""
        if sum(len(span.units) == 1 for span in spans) < 2:
            return spans
        groups: list[list[Span]] = []
        previous = 0
        for span in spans:
            number = self._frame_number(input_ids[span.row], span)
            if number > 1 and number == previous + 1 and groups[-1][0].row == span.row:
                groups[-1].append(span)
            else:
                groups.append([span])
            previous = number
        return [group[0] if len(group) == 1 else _video(group) for group in groups]

    def _frame_number(self, ids: Tensor, span: Span) -> int:
        """Which frame of a video a picture is by what is written before it; 0 where it is none."""
        start = int(span.positions[0])
        found = FRAME.search(self.read(ids[max(0, start - FRAME_IDS) : start].tolist())) if len(span.units) == 1 else None
        return int(found[1]) if found else 0

    def vision_attention(self, layer: int) -> QueryKey:
        attention = self.vision.encoder.layer[layer].attention
        return QueryKey(attention.q_norm, attention.k_norm, attention.num_heads, attention.scale)

    def unread_outputs(self, inputs: Mapping[str, Any]) -> tuple[str, ...]:
        """The last layer is read behind the norm, where no other is asked for."""
        asked = inputs.get("vision_feature_layer")
        return ("hidden_states",) if (self.config.vision_feature_layer if asked is None else asked) == -1 else ()

    def vision_embeddings(self) -> nn.Module:
        layer = self.config.vision_feature_layer
        if layer == -1:
            return self.vision.layernorm
        return self.vision.encoder.layer[layer if layer < 0 else layer - 1]

    def pool(self, scores: Sequence[Tensor], span: Span) -> Tensor:
        return pool_pixel_shuffle(torch.stack(list(scores)), self.factor).flatten()


def _video(frames: list[Span]) -> Span:
    tiles = tuple(tile for frame in frames for tile in frame.layout.tiles)
    units = tuple(unit for frame in frames for unit in frame.units)
    return Span(frames[0].row, torch.cat([frame.positions for frame in frames]), units, Layout(tiles, video=True))
