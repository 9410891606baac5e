"""InternVL 2.5 / 3 / 3.5 in the Hugging Face format."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from vllm.model_executor.models.interfaces import SupportsMRoPE
from vllm.model_executor.models.interns1 import (
    InternS1DummyInputsBuilder,
    InternS1ForConditionalGeneration,
    InternS1MultiModalProcessor,
    InternS1ProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from ....adapters import Modality, QueryKey
from ....adapters.internvl import InternVLAdapter
from ....errors import UnsupportedModelError
from ..encoding import Inputs
from ..model import PrunesPictures
from ..processor import PrunesPrompts, hides_settings


class Encoder(InternVLAdapter):
    """The same encoder, written by vLLM."""

    modalities: tuple[Modality, ...] = ()  # type: ignore[assignment]

    def __init__(self, config: Any, vision: nn.Module) -> None:
        if config.vision_feature_layer != -1:
            raise UnsupportedModelError(
                f"vLLM reads the last layer of InternVL's encoder, and vision_feature_layer is {config.vision_feature_layer}."
            )
        self.config, self.vision, self.image_token_id = config, vision, config.image_token_id
        self.vision_depth = len(self.vision.encoder.layer)
        self.factor = round(1 / config.downsample_ratio)
        height, width = (
            size // patch for size, patch in zip(config.vision_config.image_size, config.vision_config.patch_size, strict=True)
        )
        self.columns, self.rows = width // self.factor, height // self.factor
        self.read = lambda ids: ""

    def vision_attention(self, layer: int) -> QueryKey:
        attention = self.vision.encoder.layer[layer].attention
        query, key = (getattr(attention, f"{part}_norm", getattr(attention, f"{part}_proj")) for part in "qk")
        return QueryKey(query, key, attention.num_heads, attention.scale)


class Processor(PrunesPrompts, InternS1MultiModalProcessor):
    """InternVL's prompts."""

    has_cls = True

    def visual_tokens(self, processed: Mapping[str, Any]) -> list[int]:
        per_tile = self.info.get_hf_processor().image_seq_length
        return [per_tile * tiles for tiles in processed["image_num_patches"].tolist()]


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=hides_settings(InternS1ProcessingInfo), dummy_inputs=InternS1DummyInputsBuilder
)
class PrunedInternVL(PrunesPictures, InternS1ForConditionalGeneration, SupportsMRoPE):
    """InternVL, pruned where a request asks for it."""

    def adapter(self) -> Encoder:
        return Encoder(self.config, self.vision_tower)

    def part(self, inputs: Inputs, numbers: Sequence[int]) -> Inputs:
        tiles = inputs["image_num_patches"]
        pixels = inputs["pixel_values"].split(tiles.flatten().tolist())
        return {
            **inputs,
            "pixel_values": torch.cat([pixels[number] for number in numbers]),
            "image_num_patches": tiles[torch.tensor(numbers)],
        }
