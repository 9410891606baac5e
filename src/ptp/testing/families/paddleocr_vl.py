"""PaddleOCR-VL, small and of real size."""

import copy
from typing import Any

from transformers import PaddleOCRVLConfig, PaddleOCRVLForConditionalGeneration
from transformers.models.paddleocr_vl.image_processing_pil_paddleocr_vl import PaddleOCRVLImageProcessorPil
from transformers.models.paddleocr_vl.processing_paddleocr_vl import PaddleOCRVLProcessor

from ..family import Family, Scale, token_id, tokenizer

PLACEHOLDER = "<|IMAGE_PLACEHOLDER|>"
IMAGE = f"<|IMAGE_START|>{PLACEHOLDER}<|IMAGE_END|>"


def config(scale: Scale) -> PaddleOCRVLConfig:
    """Pictures whole, their patches packed row by row; 2 x 2 of them are a token."""
    vision = scale.vision() | dict(image_size=384 if scale.real else 56, patch_size=14, spatial_merge_size=2)
    return PaddleOCRVLConfig(
        vision_config=vision,
        text_config=scale.language("paddleocr_vl_text", rope_parameters=scale.mrope(), tie_word_embeddings=False),
        image_token_id=token_id(PLACEHOLDER),
        vision_start_token_id=token_id("<|IMAGE_START|>"),
        vision_end_token_id=token_id("<|IMAGE_END|>"),
        tie_word_embeddings=False,
    )


def processor(scale: Scale) -> Any:
    """Up to 3,600 tokens, as published; small: 40,000 pixels. Its tokenizer knows the placeholder by name."""
    most, least = (2822400, 147384) if scale.real else (40000, 56 * 56)
    own = copy.copy(tokenizer())
    own.image_token, own.image_token_id = PLACEHOLDER, token_id(PLACEHOLDER)
    return PaddleOCRVLProcessor(PaddleOCRVLImageProcessorPil(size={"shortest_edge": least, "longest_edge": most}), own)


PADDLEOCR_VL = Family(
    "paddleocr-vl",
    IMAGE,
    PaddleOCRVLForConditionalGeneration,
    config,
    processor,
    markers=("<|IMAGE_START|>", PLACEHOLDER, "<|IMAGE_END|>", "<|begin_of_sentence|>"),
)
