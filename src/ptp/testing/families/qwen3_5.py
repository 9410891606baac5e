"""Qwen3.5: gated delta rule and a short convolution in three layers of four, attention in the fourth."""

from functools import partial
from typing import Any

from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

from ..family import Family, Scale
from .qwen_vl import IMAGE, MARKERS, config, processor


def qwen3_5(scale: Scale, config_class: type = Qwen3_5Config, text: str = "qwen3_5_text", **more: Any) -> Any:
    """A quarter of each head turns; small: half, and every other layer attends, the first one, too, so that every method finds
    attention in the layer where it reads it."""
    share, width = (0.25, 128) if scale.real else (0.5, 32)
    turning = int(scale.text["head_dim"] * share) // 2
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": share, "mrope_interleaved": True}
    rope["mrope_section"] = [turning - 2 * (turning // 3), turning // 3, turning // 3]
    kinds = None if scale.real else ["full_attention", "linear_attention"] * (scale.text["num_hidden_layers"] // 2)
    heads = max(1, scale.text["hidden_size"] // width // 2) if scale.real else 2
    linear = dict(
        linear_key_head_dim=width, linear_value_head_dim=width, linear_num_key_heads=heads, linear_num_value_heads=2 * heads
    )
    settings = linear | dict(rope_parameters=rope, layer_types=kinds) | more
    return config(scale, config_class, text, settings, patch_size=16, num_position_embeddings=(48 if scale.real else 8) ** 2)


QWEN3_5 = Family("qwen3.5", IMAGE, Qwen3_5ForConditionalGeneration, qwen3_5, partial(processor, Qwen3VLProcessor, 16), MARKERS)
