"""GLM-4.1V, GLM-4.5V and GLM-4.6V in the Hugging Face format."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.vision_utils import get_vision_position_ids

from .base import Adapter, Modality, QueryKey, Span
from .packed import Grid, grids_of, lengths_of, pairs_of, region_means, sizes_of, spans_of
from .rotary import vision_rotary
from .text import TextModel


class Glm4vAdapter(Adapter):
    """Pictures whole, at their own size: no tiles, no thumbnail, no [CLS]; a convolution makes a token of 2 x 2 patches.

    Regions are a grid of windows over the picture, of about `window` pixels each; of a video, its frames, which have the token
    id of pictures.
    """

    family = "GLM-4.1V / 4.5V / 4.6V"
    model_types = ("glm4v", "glm4v_moe", "glm46v")
    regions = "windows of about 448 px; videos: frames"
    saliency = "received"
    has_cls = False

    def __init__(self, model: PreTrainedModel) -> None:
        config = model.config
        self.core = model.model
        self.vision = self.core.visual
        self.vision_depth = len(self.vision.blocks)
        self.text = TextModel(self.core.language_model, self.family)
        self.image_token_id = config.image_token_id
        self.merge = config.vision_config.spatial_merge_size
        self.side = self.merge * config.vision_config.patch_size

    @property
    def modalities(self) -> tuple[Modality, ...]:
        return (*super().modalities, Modality("video", "get_video_features", "pixel_values_videos", self.image_token_id))

    def about(self, inputs: Mapping[str, Any], window: int) -> list[Grid]:
        return grids_of(inputs, self.merge, self.side, window)

    def locate(self, input_ids: Tensor, tokens: Tensor, about: list[Grid], pixels: Sequence[Tensor]) -> list[Span]:
        return spans_of(tokens, about)

    def vision_attention(self, layer: int) -> QueryKey:
        attention = self.vision.blocks[layer].attn
        return QueryKey(attention.qkv, attention.qkv, attention.num_heads, attention.scaling)

    def vision_embeddings(self) -> nn.Module:
        return self.vision.post_layernorm

    def heads(self, layer: int, queries: Tensor, keys: Tensor, about: list[Grid]) -> list[tuple[Tensor, Tensor]]:
        q, k, _ = queries.unflatten(-1, (3, self.vision_attention(layer).heads, -1)).unbind(1)  # (patches, H, D)
        places = get_vision_position_ids(sizes_of(about, q.device), self.merge)
        modeling = sys.modules[type(self.vision).__module__]
        q, k = modeling.apply_rotary_pos_emb_vision(q, k, *vision_rotary(self.vision.rotary_pos_emb, q, places))
        return pairs_of(q, k, lengths_of(about))

    def embed(self, states: Tensor, about: list[Grid]) -> list[Tensor]:
        """The mean over the patches of each region."""
        return region_means(states.unflatten(0, (-1, self.merge**2)).mean(dim=1), about)

    def shrink(self, pixels: Tensor, about: list[Grid]) -> list[Tensor]:
        """The mean of each patch."""
        return list(pixels.float().mean(dim=-1).split(lengths_of(about)))

    def pool(self, scores: Sequence[Tensor], span: Span) -> Tensor:
        """Mean over each block of merged patches, which follow each other."""
        patches = torch.cat(list(scores))
        return patches.view(-1, self.merge**2).mean(dim=1)[span.about.order.to(patches.device)]
