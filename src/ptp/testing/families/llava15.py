"""LLaVA 1.5, small and of real size."""

from typing import Any

from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.processing_llava import LlavaProcessor

from ..family import Family, Scale, token_id, tokenizer


def config(scale: Scale) -> Any:
    """CLIP, read at its last layer but one; Llama."""
    vision = CLIPVisionConfig(**scale.vision(), image_size=336 if scale.real else 112, patch_size=14, projection_dim=32)
    return LlavaConfig(
        vision_config=vision, text_config=scale.language("llama"), image_token_index=token_id("<image>"),
        image_seq_length=576 if scale.real else 64, vision_feature_layer=-2, tie_word_embeddings=False,
    )  # fmt: skip


def processor(scale: Scale) -> Any:
    """One tile, the middle of the picture."""
    side = 336 if scale.real else 112
    tiles = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    strategy = {"vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return LlavaProcessor(tiles, tokenizer(), patch_size=14, **strategy)


LLAVA15 = Family("llava-1.5", "<image>", LlavaForConditionalGeneration, config, processor, markers=("<image>",), square=True)
