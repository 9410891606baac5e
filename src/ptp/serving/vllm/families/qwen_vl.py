"""Qwen2.5-VL and Qwen3-VL: pictures whole, positions of rows and columns (M-RoPE)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl
from transformers.models.qwen3_vl import modeling_qwen3_vl
from vllm.model_executor.models.qwen2_5_vl import (
    Qwen2_5_VLDummyInputsBuilder,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLMultiModalProcessor,
    Qwen2_5_VLProcessingInfo,
)
from vllm.model_executor.models.qwen3_vl import (
    Qwen3VLDummyInputsBuilder,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMultiModalProcessor,
    Qwen3VLProcessingInfo,
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

    def __init__(self, config: Any, vision: Any, modeling: Any, last: nn.Module) -> None:
        """Args: modeling: The family in transformers. last: The module that is given what the last layer puts out."""
        sizes = config.vision_config
        self.vision, self.vision_depth, self.modeling, self.last = vision, len(vision.blocks), modeling, last
        self.image_token_id, self.video_token_id = config.image_token_id, config.video_token_id
        self.merge, self.patch = sizes.spatial_merge_size, sizes.patch_size
        self.windowed = getattr(sizes, "window_size", 0)
        self.whole_blocks = getattr(sizes, "fullatt_block_indexes", range(self.vision_depth))
        self.width, self.count = sizes.hidden_size // sizes.num_heads, sizes.num_heads
        self.rotary = Rotary(self.width)
        self.read = lambda ids: ""

    def vision_attention(self, layer: int) -> QueryKey:
        fused = self.vision.blocks[layer].attn.qkv
        return QueryKey(fused, fused, self.count, self.width**-0.5)

    def vision_embeddings(self) -> Any:
        return InputOf(self.last)

    def heads(self, layer: int, queries: Tensor, keys: Tensor, about: list[Grid]) -> list[tuple[Tensor, Tensor]]:
        return super().heads(layer, queries.flatten(0, 1), keys.flatten(0, 1), about)

    def embed(self, states: Tensor, about: list[Grid]) -> list[Tensor]:
        return super().embed(states.flatten(0, 1), about)


class ProcessesQwen(PrunesPrompts):
    """What both families' prompts are made by."""

    has_cls = False

    def vision_depth(self) -> int:
        config: Any = self.info.get_hf_config()
        return config.vision_config.depth

    def visual_tokens(self, processed: Mapping[str, Any]) -> list[int]:
        config: Any = self.info.get_hf_config()
        return (processed["image_grid_thw"].prod(dim=-1) // config.vision_config.spatial_merge_size**2).tolist()


class PrunesQwen(PrunesPictures):
    """What both families do otherwise."""

    axes = 3
    config: Any
    visual: Any

    def part(self, inputs: Inputs, numbers: Sequence[int]) -> Inputs:
        grids = inputs["image_grid_thw"]
        pixels = inputs["pixel_values"].split(grids.prod(dim=-1).tolist())
        chosen = torch.cat([pixels[number] for number in numbers])
        return {**inputs, "pixel_values": chosen, "image_grid_thw": grids[torch.tensor(numbers)]}

    def shown(self, feature: Any) -> Shown:
        _, rows, columns = feature.data["image_grid_thw"].data.tolist()
        return Shown(*visual_range(feature), max(rows, columns) // self.config.vision_config.spatial_merge_size, flat=False)


class Processor25(ProcessesQwen, Qwen2_5_VLMultiModalProcessor):
    """Qwen2.5-VL's prompts."""


@MULTIMODAL_REGISTRY.register_processor(
    Processor25, info=hides_settings(Qwen2_5_VLProcessingInfo), dummy_inputs=Qwen2_5_VLDummyInputsBuilder
)
class PrunedQwen25VL(PrunesQwen, Qwen2_5_VLForConditionalGeneration):
    """Qwen2.5-VL, pruned where a request asks for it."""

    def adapter(self) -> Encoder:
        return Encoder(self.config, self.visual, modeling_qwen2_5_vl, self.visual.merger.ln_q)


class Processor3(ProcessesQwen, Qwen3VLMultiModalProcessor):
    """Qwen3-VL's prompts."""


@MULTIMODAL_REGISTRY.register_processor(
    Processor3, info=hides_settings(Qwen3VLProcessingInfo), dummy_inputs=Qwen3VLDummyInputsBuilder
)
class PrunedQwen3VL(PrunesQwen, Qwen3VLForConditionalGeneration):
    """Qwen3-VL, pruned where a request asks for it: DeepStack's features stand behind each token's, and leave with it."""

    def adapter(self) -> Encoder:
        return Encoder(self.config, self.visual, modeling_qwen3_vl, self.visual.merger.norm)

    def row_width(self, model_config: Any) -> int:
        return self.visual_dim + (self.multiscale_dim if self.use_deepstack else 0)
