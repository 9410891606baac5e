"""LLaVA-OneVision, small and of real size."""

from typing import Any

from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, SiglipVisionConfig
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor

from ...loader import pictures_only
from ..family import Family, Scale, token_id, tokenizer


def tiles(scale: Scale) -> tuple[int, list[list[int]], str]:
    """A tile's side, the (height, width) of the canvases, and how large a picture may be before it is shrunk."""
    side, most, ratio = (384, 6, "anyres_max_9") if scale.real else (60, 3, "anyres_max_3")  # 4 or 6 px are in no patch
    return side, [[side * h, side * w] for h in range(1, most + 1) for w in range(1, most + 1)], ratio


def config(scale: Scale) -> Any:
    """SigLIP without [CLS]; Qwen2."""
    side, pinpoints, ratio = tiles(scale)
    vision = SiglipVisionConfig(**scale.vision(), image_size=side, patch_size=14, vision_use_head=False)
    return LlavaOnevisionConfig(
        vision_config=vision, text_config=scale.language("qwen2"), image_token_index=token_id("<image>"),
        video_token_index=token_id("<video>"), image_grid_pinpoints=pinpoints, vision_aspect_ratio=ratio,
        vision_feature_layer=-1, tie_word_embeddings=False,
    )  # fmt: skip


def processor(scale: Scale) -> Any:
    """Up to 36 tiles, behind the thumbnail; small: nine."""
    side, pinpoints, ratio = tiles(scale)
    images = LlavaOnevisionImageProcessorPil(size={"height": side, "width": side}, image_grid_pinpoints=pinpoints)
    settings = {"vision_feature_select_strategy": "full", "vision_aspect_ratio": ratio}
    return pictures_only(LlavaOnevisionProcessor)(images, tokenizer(), None, num_image_tokens=(side // 14) ** 2, **settings)


LLAVA_ONEVISION = Family(
    "llava-onevision", "<image>", LlavaOnevisionForConditionalGeneration, config, processor, markers=("<image>",), nested=True
)
