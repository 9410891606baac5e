"""LLaVA-OneVision: tiles behind the thumbnail, as one raster whose rows end in newline tokens, which stay."""

import functools
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.models.interfaces import SupportsMRoPE
from vllm.model_executor.models.llava_onevision import (
    LlavaOnevisionDummyInputsBuilder,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionMultiModalProcessor,
    LlavaOnevisionProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.parse import ImageProcessorItems

from ....adapters import Modality, QueryKey
from ....adapters.llava import LlavaAdapter, Packed
from ..encoding import Inputs
from ..model import PrunesPictures
from ..processor import PrunesPrompts, hides_settings
from ..settings import KEY, Settings

SHRUNK = "anyres_max_9"
"""How large a picture may be before vLLM shrinks its raster, whatever the configuration says."""


class Encoder(LlavaAdapter):
    """The same encoder, written by vLLM: queries, keys and values of a layer are put out as one, and all pictures are cut."""

    modalities: tuple[Modality, ...] = ()  # type: ignore[assignment]

    def __init__(self, config: Any, vision: nn.Module | None = None) -> None:
        """Args: vision: Left out where only the layout of pictures is asked for."""
        self.config, self.vision, self.image_token_id = config, vision, config.image_token_id
        self.has_cls = False
        depth, chosen = config.vision_config.num_hidden_layers, config.vision_feature_layer
        self.vision_depth = depth + 1 + chosen if chosen < 0 else chosen
        self.side = config.vision_config.image_size // config.vision_config.patch_size
        self.packed = functools.lru_cache(maxsize=128)(self._find)
        self.read = lambda ids: ""

    def pictures(self, sizes: Tensor | Sequence[Sequence[int]]) -> list[Packed]:
        """How pictures of these (height, width) are laid out."""
        return [self.packed(picture) for picture in self.about({"image_sizes": sizes}, 0)]

    def vision_attention(self, layer: int) -> QueryKey:
        attention = self.vision.encoder.layers[layer].self_attn
        return QueryKey(attention.qkv_proj, attention.qkv_proj, attention.num_heads, attention.scale)

    def heads(self, layer: int, queries: Tensor, keys: Tensor, about: Any) -> list[tuple[Tensor, Tensor]]:
        query, key, _ = queries.chunk(3, dim=-1)
        return super().heads(layer, query, key, about)

    def _pack(self, features: Tensor, about: Any, newline: Tensor) -> Tensor:
        """By vLLM's own packing, which needs nothing of the model but its configuration."""
        pack, model = LlavaOnevisionForConditionalGeneration._merge_image_patch_embeddings, SimpleNamespace(config=self.config)
        return pack(model, torch.tensor(about[0]), features, image_newline=newline, strategy="spatial_unpad")


class Processor(PrunesPrompts, LlavaOnevisionMultiModalProcessor):
    """LLaVA-OneVision's prompts."""

    has_cls = False

    @functools.cached_property
    def _layout(self) -> Encoder:
        return Encoder(self.info.get_hf_config())

    def check(self, settings: Settings) -> None:
        config: Any = self.info.get_hf_config()
        kind, strategy = config.vision_config.model_type, config.vision_feature_select_strategy
        if (kind, strategy) != ("siglip_vision_model", "full"):
            raise ValueError(
                f"LLaVA-OneVision is pruned where its encoder is SigLIP and all its patches are features ('full'), got {kind} "
                f"and {strategy!r}. Leave out {KEY!r}."
            )
        if config.vision_aspect_ratio != SHRUNK:
            raise ValueError(
                f"vision_aspect_ratio must be {SHRUNK!r}, which vLLM shrinks large pictures by, got "
                f"{config.vision_aspect_ratio!r}. Leave out {KEY!r}."
            )
        if not settings.pruner.keep_structure:
            raise ValueError(
                "keep_structure must be true where LLaVA-OneVision is served, got False: prompts are made before it is known "
                "in which rows tokens stay, and so how many newline tokens would leave. Leave it out."
            )

    def vision_depth(self) -> int:
        return self._layout.vision_depth

    def visual_tokens(self, processed: Mapping[str, Any]) -> list[int]:
        return [picture.tokens for picture in self._layout.pictures(processed["image_sizes"])]

    def line_ends(self, pictures: ImageProcessorItems) -> list[int]:
        sizes = [pictures.get_image_size(number) for number in range(len(pictures))]
        packed = self._layout.pictures([(size.height, size.width) for size in sizes])
        return [picture.tokens - picture.layout.tokens for picture in packed]


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=hides_settings(LlavaOnevisionProcessingInfo), dummy_inputs=LlavaOnevisionDummyInputsBuilder
)
class PrunedLlavaOnevision(PrunesPictures, LlavaOnevisionForConditionalGeneration, SupportsMRoPE):
    """LLaVA-OneVision, pruned where a request asks for it."""

    ptp_adapter: Encoder

    def adapter(self) -> Encoder:
        return Encoder(self.config, self.vision_tower.vision_model)

    def part(self, inputs: Inputs, numbers: Sequence[int]) -> Inputs:
        """Without the blank tiles that fill up a picture beside one with more."""
        sizes = inputs["image_sizes"][torch.tensor(numbers)]
        tiles = [len(picture.layout.tiles) for picture in self.ptp_adapter.pictures(sizes)]
        pixels = [inputs["pixel_values"][number][:count] for number, count in zip(numbers, tiles, strict=True)]
        return {**inputs, "pixel_values": pixels, "image_sizes": sizes}
