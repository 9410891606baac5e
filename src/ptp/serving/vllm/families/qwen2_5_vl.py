"""Qwen2.5-VL: pictures whole, positions of rows and columns (M-RoPE)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl
from vllm.model_executor.models.qwen2_5_vl import (
    Qwen2_5_VLDummyInputsBuilder,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLMultiModalProcessor,
    Qwen2_5_VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from ....adapters import Modality, QueryKey
from ....adapters.packed import Grid
from ....adapters.qwen_vl import QwenVLAdapter
from ..encoding import Inputs
from ..model import PrunesPictures, visual_range
from ..positions import Shown
from ..processor import PrunesPrompts, hides_settings


class Rotary(nn.Module):
    """Angles of patches, as Qwen's encoders turn them: half of them by the row, half by the column."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.speeds = 10000.0 ** -(torch.arange(0, width // 2, 2) / (width // 2))

    def forward(self, places: Tensor) -> Tensor:
        """(patches, width / 2) of (patches, 2) rows and columns."""
        return (places[..., None] * self.speeds.to(places.device)).flatten(1)


class InputOf:
    """What a module is given, where a hook wants what one puts out: vLLM calls some blocks past their hooks."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def register_forward_hook(self, hook: Any) -> Any:
        """Call `hook` with the module's input in the place of an output."""
        return self._module.register_forward_pre_hook(lambda module, args: hook(module, args, args[0]))


class Encoder(QwenVLAdapter):
    """The same encoder, written by vLLM: its states have an axis more, and its attention is fused."""

    modalities: tuple[Modality, ...] = ()  # type: ignore[assignment]

    def __init__(self, config: Any, vision: Any) -> None:
        sizes = config.vision_config
        self.vision, self.vision_depth, self.modeling = vision, len(vision.blocks), modeling_qwen2_5_vl
        self.image_token_id, self.video_token_id = config.image_token_id, config.video_token_id
        self.merge, self.patch = sizes.spatial_merge_size, sizes.patch_size
        self.windowed, self.whole_blocks = sizes.window_size, sizes.fullatt_block_indexes
        self.width, self.count = sizes.hidden_size // sizes.num_heads, sizes.num_heads
        self.rotary = Rotary(self.width)
        self.read = lambda ids: ""

    def vision_attention(self, layer: int) -> QueryKey:
        fused = self.vision.blocks[layer].attn.qkv
        return QueryKey(fused, fused, self.count, self.width**-0.5)

    def vision_embeddings(self) -> Any:
        return InputOf(self.vision.merger.ln_q)

    def heads(self, layer: int, queries: Tensor, keys: Tensor, about: list[Grid]) -> list[tuple[Tensor, Tensor]]:
        return super().heads(layer, queries.flatten(0, 1), keys.flatten(0, 1), about)

    def embed(self, states: Tensor, about: list[Grid]) -> list[Tensor]:
        return super().embed(states.flatten(0, 1), about)


class Processor(PrunesPrompts, Qwen2_5_VLMultiModalProcessor):
    """Qwen2.5-VL's prompts."""

    has_cls = False

    def vision_depth(self) -> int:
        return self.info.get_hf_config().vision_config.depth

    def visual_tokens(self, processed: Mapping[str, Any]) -> list[int]:
        merge = self.info.get_hf_config().vision_config.spatial_merge_size
        return (processed["image_grid_thw"].prod(dim=-1) // merge**2).tolist()


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=hides_settings(Qwen2_5_VLProcessingInfo), dummy_inputs=Qwen2_5_VLDummyInputsBuilder
)
class PrunedQwen25VL(PrunesPictures, Qwen2_5_VLForConditionalGeneration):
    """Qwen2.5-VL, pruned where a request asks for it."""

    axes = 3

    def adapter(self) -> Encoder:
        return Encoder(self.config, self.visual)

    def part(self, inputs: Inputs, numbers: Sequence[int]) -> Inputs:
        grids = inputs["image_grid_thw"]
        pixels = inputs["pixel_values"].split(grids.prod(dim=-1).tolist())
        chosen = torch.cat([pixels[number] for number in numbers])
        return {**inputs, "pixel_values": chosen, "image_grid_thw": grids[torch.tensor(numbers)]}

    def shown(self, feature: Any) -> Shown:
        _, rows, columns = feature.data["image_grid_thw"].data.tolist()
        return Shown(*visual_range(feature), max(rows, columns) // self.config.vision_config.spatial_merge_size, flat=False)
