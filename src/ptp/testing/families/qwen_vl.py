"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL, small and of real size."""

from functools import partial
from typing import Any

from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.processing_qwen2_vl import Qwen2VLProcessor
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

from ...loader import pictures_only
from ..family import Family, Scale, token_id, tokenizer

MARKERS = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"


def config(scale: Scale, config_class: type, text: str, **vision: Any) -> Any:
    """Pictures whole, their patches packed; 2 x 2 of them are a token."""
    sizes = dict(hidden_size=scale.hidden, depth=scale.layers, num_heads=scale.heads, intermediate_size=scale.mlp)
    merge = dict(out_hidden_size=scale.text["hidden_size"], spatial_merge_size=2, temporal_patch_size=2)
    return config_class(
        vision_config=sizes | merge | vision, text_config=scale.language(text, rope_parameters=scale.mrope()),
        image_token_id=token_id("<|image_pad|>"), video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"), vision_end_token_id=token_id("<|vision_end|>"),
        tie_word_embeddings=False,
    )  # fmt: skip


def qwen2(scale: Scale) -> Any:
    """Its vision settings have names of their own: the width is embed_dim, and hidden_size that of the language model."""
    own = dict(embed_dim=scale.hidden, hidden_size=scale.text["hidden_size"], mlp_ratio=scale.mlp // scale.hidden)
    return config(scale, Qwen2VLConfig, "qwen2_vl_text", patch_size=14, **own)


def qwen2_5(scale: Scale) -> Any:
    """Most of its vision layers attend in windows of their own."""
    whole = [n for n in range(scale.layers) if (scale.layers - 1 - n) % (scale.layers // 4 or 2) == 0]
    window = 112 if scale.real else 56
    return config(scale, Qwen2_5_VLConfig, "qwen2_5_vl_text", patch_size=14, window_size=window, fullatt_block_indexes=whole)


def qwen3(scale: Scale) -> Any:
    """Features of its earlier vision layers are added inside the language model (DeepStack)."""
    side, deep = (48, [2, 5, 8]) if scale.real else (8, [0, 1])
    settings = dict(patch_size=16, num_position_embeddings=side**2, deepstack_visual_indexes=deep)
    return config(scale, Qwen3VLConfig, "qwen3_vl_text", **settings)


def processor(processor_class: type, patch: int, scale: Scale) -> Any:
    """Up to 16,384 tokens; small: 40,000 pixels."""
    most = 16384 * 28 * 28 if scale.real else 40000
    pixels = Qwen2VLImageProcessorPil(size={"shortest_edge": 56 * 56, "longest_edge": most}, patch_size=patch)
    return pictures_only(processor_class)(pixels, tokenizer(), None)


QWEN2_5_VL, QWEN3_VL, QWEN2_VL = (
    Family(name, IMAGE, model_class, made, partial(processor, processor_class, patch), MARKERS)
    for name, model_class, made, processor_class, patch in (
        ("qwen2.5-vl", Qwen2_5_VLForConditionalGeneration, qwen2_5, Qwen2_5_VLProcessor, 14),
        ("qwen3-vl", Qwen3VLForConditionalGeneration, qwen3, Qwen3VLProcessor, 16),
        ("qwen2-vl", Qwen2VLForConditionalGeneration, qwen2, Qwen2VLProcessor, 14),
    )
)
