"""Mistral 3 with Ministral 3's language model, small and of real size."""

from typing import Any

from transformers import Mistral3Config, Mistral3ForConditionalGeneration, PixtralVisionConfig
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

from ...loader import processor_class
from ..family import Family, Scale, token_id, tokenizer

MARKERS = ("[IMG]", "[IMG_BREAK]", "[IMG_END]")


def config(scale: Scale) -> Any:
    """Pictures whole, their patches packed; 2 x 2 of them are a token. Queries grow with their positions."""
    length = 16384 if scale.real else 32
    yarn = {"rope_type": "yarn", "factor": 16.0, "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0}
    rope = yarn | {"rope_theta": 1e6, "original_max_position_embeddings": length, "llama_4_scaling_beta": 0.1}
    vision = PixtralVisionConfig(**scale.vision(), image_size=1540 if scale.real else 224, patch_size=14)
    return Mistral3Config(
        vision_config=vision, text_config=scale.language("ministral3", rope_parameters=rope),
        image_token_index=token_id("[IMG]"), vision_feature_layer=-1, spatial_merge_size=2, tie_word_embeddings=False,
    )  # fmt: skip


def processor(scale: Scale) -> Any:
    """Pictures of up to 1,540 pixels; small: 224. It writes a marker behind each line of tokens."""
    pictures = PixtralImageProcessorPil(size={"longest_edge": 1540 if scale.real else 224}, patch_size=14)
    return processor_class("PixtralProcessor")(pictures, tokenizer(), patch_size=14, spatial_merge_size=2)


MISTRAL3 = Family("mistral3", "[IMG]", Mistral3ForConditionalGeneration, config, processor, MARKERS)
