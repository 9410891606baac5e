"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL in the Hugging Face format."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from .base import Adapter, Modality, QueryKey, Span
from .packed import Grid, grids_of, lengths_of, pairs_of, region_means, sizes_of, spans_of
from .rotary import vision_rotary
from .text import TextModel


class QwenVLAdapter(Adapter):
    """Pictures whole, at their own size: no tiles, no thumbnail, no [CLS]; visual tokens by merging 2 x 2 patches.

    Regions are a grid of windows over the picture, of about `window` pixels each; of a video, its frames. In Qwen2.5-VL most
    vision layers attend in small windows of their own; saliency is then what a patch receives inside its window. In Qwen3-VL
    the features of DeepStack leave with their tokens.
    """

    family = "Qwen2-VL / Qwen2.5-VL / Qwen3-VL"
    model_types: ClassVar[tuple[str, ...]] = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")
    regions = "windows of about 448 px; videos: frames"
    saliency = "received"
    has_cls = False

    def __init__(self, model: PreTrainedModel) -> None:
        config = model.config
        self.core = model.model
        self.vision = self.core.visual
        self.vision_depth = len(self.vision.blocks)
        self.rotary, self.modeling = self.vision.rotary_pos_emb, sys.modules[type(self.vision).__module__]
        self.text = TextModel(self.core.language_model, self.family)
        self.image_token_id, self.video_token_id = config.image_token_id, config.video_token_id
        self.merge = config.vision_config.spatial_merge_size
        self.patch = config.vision_config.patch_size
        # Qwen2.5-VL only: blocks that attend to all patches, and the order in which patches go through the encoder.
        self.windowed = getattr(config.vision_config, "window_size", 0)
        self.whole_blocks = getattr(config.vision_config, "fullatt_block_indexes", range(self.vision_depth))
        if hasattr(self.vision, "deepstack_merger_list"):
            self.late_features = ("visual_pos_masks", "deepstack_visual_embeds")

    @property
    def modalities(self) -> tuple[Modality, ...]:
        return (*super().modalities, Modality("video", "get_video_features", "pixel_values_videos", self.video_token_id))

    def about(self, inputs: Mapping[str, Any], window: int) -> list[Grid]:
        return grids_of(inputs, self.merge, self.merge * self.patch, window)

    def locate(self, input_ids: Tensor, tokens: Tensor, about: list[Grid], pixels: Sequence[Tensor]) -> list[Span]:
        return spans_of(tokens, about)

    def vision_attention(self, layer: int) -> QueryKey:
        attention = self.vision.blocks[layer].attn
        return QueryKey(attention.qkv, attention.qkv, attention.num_heads, attention.scaling)

    def vision_embeddings(self) -> nn.Module:
        return self.vision.blocks[self.vision_depth - 1]

    def heads(self, layer: int, queries: Tensor, keys: Tensor, about: list[Grid]) -> list[tuple[Tensor, Tensor]]:
        """One pair per frame, or per window of the layer."""
        q, k, _ = queries.unflatten(-1, (3, self.vision_attention(layer).heads, -1)).unbind(1)  # (patches, H, D)
        places = get_vision_position_ids(sizes_of(about, queries.device), self.merge)
        if self.windowed:
            places = places.view(-1, self.merge**2, 2)[self._windows(about, queries.device)[0]].flatten(0, 1)
        cos, sin = vision_rotary(self.rotary, q, places)
        q, k = self.modeling.apply_rotary_pos_emb_vision(q, k, cos, sin)
        if layer in self.whole_blocks:
            return pairs_of(q, k, lengths_of(about))
        return pairs_of(q, k, self._windows(about, queries.device)[1].diff().tolist())

    def by_unit(self, layer: int, rows: Sequence[Tensor], about: list[Grid]) -> list[Tensor]:
        return list(self._in_raster(torch.cat(list(rows)), about).split(lengths_of(about)))

    def embed(self, states: Tensor, about: list[Grid]) -> list[Tensor]:
        """The mean over the patches of each region."""
        return region_means(self._in_raster(states, about).unflatten(0, (-1, self.merge**2)).mean(dim=1), about)

    def shrink(self, pixels: Tensor, about: list[Grid]) -> list[Tensor]:
        """The mean of each patch."""
        return list(pixels.float().mean(dim=-1).split(lengths_of(about)))

    def pool(self, scores: Sequence[Tensor], span: Span) -> Tensor:
        """Mean over each block of merged patches, which follow each other."""
        patches = torch.cat(list(scores))
        return patches.view(-1, self.merge**2).mean(dim=1)[span.about.order.to(patches.device)]

    def _in_raster(self, patches: Tensor, about: list[Grid]) -> Tensor:
        """Undo the order in which Qwen2.5-VL's patches go through the encoder: blocks of merged patches in raster order."""
        if not self.windowed:
            return patches
        order = self._windows(about, patches.device)[0].argsort()
        return patches.unflatten(0, (-1, self.merge**2))[order].flatten(0, 1)

    def _windows(self, about: list[Grid], device: torch.device) -> tuple[Tensor, Tensor]:
        return get_vision_window_index(sizes_of(about, device), self.merge, self.windowed, self.patch)
