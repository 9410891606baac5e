"""PaddleOCR-VL in the Hugging Face format."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.vision_utils import get_vision_position_ids

from .base import Adapter, QueryKey, Span
from .packed import Grid, grids_of, lengths_of, pairs_of, region_means, sizes_of, spans_of
from .rotary import vision_rotary
from .text import TextModel


class PaddleOCRVLAdapter(Adapter):
    """Pictures whole, at their own size: no tiles, no thumbnail, no [CLS]; the projector makes a token of 2 x 2 patches.

    Regions are a grid of windows over the picture, of about `window` pixels each. Unlike Qwen-VL's, the patches of a picture go
    through the encoder row by row.
    """

    family = "PaddleOCR-VL"
    model_types = ("paddleocr_vl",)
    regions = "windows of about 448 px"
    saliency = "received"
    has_cls = False

    def __init__(self, model: PreTrainedModel) -> None:
        config = model.config
        self.core = model.model
        self.vision = self.core.visual.vision_model
        self.vision_depth = len(self.vision.encoder.layers)
        self.text = TextModel(self.core.language_model, self.family)
        self.image_token_id = config.image_token_id
        self.merge = config.vision_config.spatial_merge_size
        self.side = self.merge * config.vision_config.patch_size

    def about(self, inputs: Mapping[str, Any], window: int) -> list[Grid]:
        return grids_of(inputs, self.merge, self.side, window)

    def locate(self, input_ids: Tensor, tokens: Tensor, about: list[Grid], pixels: Sequence[Tensor]) -> list[Span]:
        return spans_of(tokens, about)

    def vision_attention(self, layer: int) -> QueryKey:
        attention = self.vision.encoder.layers[layer].self_attn
        return QueryKey(attention.q_proj, attention.k_proj, attention.num_heads, attention.scaling)

    def vision_embeddings(self) -> nn.Module:
        return self.vision.post_layernorm

    def heads(self, layer: int, queries: Tensor, keys: Tensor, about: list[Grid]) -> list[tuple[Tensor, Tensor]]:
        q, k = (states.unflatten(-1, (self.vision_attention(layer).heads, -1)) for states in (queries, keys))
        places = get_vision_position_ids(sizes_of(about, q.device), 1)
        modeling = sys.modules[type(self.vision).__module__]
        q, k = modeling.apply_rotary_pos_emb_vision(q, k, *vision_rotary(self.vision.encoder.rotary_pos_emb, q, places))
        return pairs_of(q, k, lengths_of(about))

    def embed(self, states: Tensor, about: list[Grid]) -> list[Tensor]:
        """The mean over the patches of each region."""
        patches = states.split([sum(lengths_of([grid])) for grid in about])
        return region_means(torch.cat([self._merged(own, grid) for own, grid in zip(patches, about, strict=True)]), about)

    def shrink(self, pixels: Tensor, about: list[Grid]) -> list[Tensor]:
        """The mean of each patch."""
        return list(pixels.float().mean(dim=(-3, -2, -1)).flatten().split(lengths_of(about)))

    def pool(self, scores: Sequence[Tensor], span: Span) -> Tensor:
        """Mean over each block of merged patches."""
        patches = torch.cat(list(scores))
        return self._merged(patches[:, None], span.about)[span.about.order.to(patches.device), 0]

    def _merged(self, patches: Tensor, grid: Grid) -> Tensor:
        """(tokens, D) means of the blocks of (patches, D), both of one picture and in raster order."""
        blocks = (grid.frames, grid.rows // self.merge, self.merge, grid.columns // self.merge, self.merge)
        return patches.unflatten(0, blocks).mean(dim=(2, 4)).flatten(0, 2)
