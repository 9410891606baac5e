"""InternVL, small and of real size."""

from typing import Any

from transformers import InternVLConfig, InternVLForConditionalGeneration
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.internvl.processing_internvl import InternVLProcessor

from ...loader import pictures_only
from ..family import Family, Scale, token_id, tokenizer


def config(scale: Scale) -> Any:
    """InternViT with [CLS], Qwen2."""
    side = 448 if scale.real else 112
    vision = scale.vision() | dict(attention_bias=True, image_size=[side] * 2, patch_size=[14] * 2, layer_scale_init_value=1.0)
    return InternVLConfig(
        vision_config=vision, text_config=scale.language("qwen2"), image_token_id=token_id("<IMG_CONTEXT>"),
        image_seq_length=(side // 28) ** 2, tie_word_embeddings=False,
    )  # fmt: skip


def processor(scale: Scale) -> Any:
    """Up to 12 tiles and a thumbnail; small: 6."""
    side, most = (448, 12) if scale.real else (112, 6)
    tiles = GotOcr2ImageProcessorPil(
        size={"height": side, "width": side}, crop_to_patches=True, min_patches=1, max_patches=most
    )
    return pictures_only(InternVLProcessor)(tiles, tokenizer(), None, image_seq_length=(side // 28) ** 2)


INTERNVL = Family("internvl", "<IMG_CONTEXT>", InternVLForConditionalGeneration, config, processor)
