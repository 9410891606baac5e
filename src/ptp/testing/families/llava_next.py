"""LLaVA-NeXT, small and of real size."""

from typing import Any

from transformers import CLIPVisionConfig, LlavaNextConfig, LlavaNextForConditionalGeneration
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor

from ..family import Family, Scale, token_id, tokenizer


def tiles(scale: Scale) -> tuple[int, list[list[int]]]:
    """A tile's side, and the (height, width) of the canvases."""
    side = 336 if scale.real else 56
    return side, [[side * h, side * w] for h, w in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))]


def config(scale: Scale) -> Any:
    """CLIP, read at its last layer but one; Llama."""
    side, pinpoints = tiles(scale)
    vision = CLIPVisionConfig(**scale.vision(), image_size=side, patch_size=14, projection_dim=32)
    return LlavaNextConfig(
        vision_config=vision, text_config=scale.language("llama"), image_token_index=token_id("<image>"),
        image_grid_pinpoints=pinpoints, vision_feature_layer=-2, tie_word_embeddings=False,
    )  # fmt: skip


def processor(scale: Scale) -> Any:
    """Up to four tiles, behind the thumbnail."""
    side, pinpoints = tiles(scale)
    crop = {"height": side, "width": side}
    images = LlavaNextImageProcessorPil(size={"shortest_edge": side}, crop_size=crop, image_grid_pinpoints=pinpoints)
    strategy = {"vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return LlavaNextProcessor(images, tokenizer(), patch_size=14, **strategy)


LLAVA_NEXT = Family("llava-next", "<image>", LlavaNextForConditionalGeneration, config, processor, markers=("<image>",))
