"""GLM-4.1V, GLM-4.5V (a mixture of experts) and GLM-4.6V, small and of real size."""

from functools import partial
from typing import Any

from transformers import (
    Glm4vConfig,
    Glm4vForConditionalGeneration,
    Glm4vMoeConfig,
    Glm4vMoeForConditionalGeneration,
    Glm46VConfig,
    Glm46VForConditionalGeneration,
)
from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil
from transformers.models.glm4v.processing_glm4v import Glm4vProcessor
from transformers.models.glm46v.image_processing_pil_glm46v import Glm46VImageProcessorPil
from transformers.models.glm46v.processing_glm46v import Glm46VProcessor

from ...loader import pictures_only
from ..family import Family, Scale, token_id, tokenizer

IMAGE = "<|begin_of_image|><|image|><|end_of_image|>"
MARKERS = (
    "<|image|>", "<|video|>", "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>",
)  # fmt: skip


def config(config_class: type, text: str, vision: str, scale: Scale) -> Any:
    """Pictures whole, their patches packed; a convolution merges 2 x 2 of them. Half of each head turns with its position."""
    sizes = dict(hidden_size=scale.hidden, depth=scale.layers, num_heads=scale.heads, intermediate_size=scale.mlp)
    merge = dict(out_hidden_size=scale.text["hidden_size"], spatial_merge_size=2, temporal_patch_size=2, patch_size=14)
    third, angles = divmod(scale.text["head_dim"] // 4, 3)
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    small = {} if text == "glm4v_text" else experts(scale)
    return config_class(
        vision_config=sizes | merge | dict(model_type=vision, image_size=336 if scale.real else 56),
        text_config=scale.language(text, rope_parameters=rope | {"mrope_section": [third + angles, third, third]}, **small),
        image_token_id=token_id("<|image|>"), video_token_id=token_id("<|video|>"),
        image_start_token_id=token_id("<|begin_of_image|>"), image_end_token_id=token_id("<|end_of_image|>"),
        video_start_token_id=token_id("<|begin_of_video|>"), video_end_token_id=token_id("<|end_of_video|>"),
        tie_word_embeddings=False,
    )  # fmt: skip


def experts(scale: Scale) -> dict[str, Any]:
    """Two of four experts and a shared one for each token, in all layers but the first."""
    width = max(64, scale.text["intermediate_size"] // 4)  # weights are quantised in blocks of 64
    return dict(n_routed_experts=4, num_experts_per_tok=2, n_shared_experts=1, moe_intermediate_size=width)


def processor(processor_class: type, pixels_class: type, scale: Scale) -> Any:
    """Up to 15,000 tokens; small: 40,000 pixels. A picture counts twice, as the two frames that a patch spans."""
    most = 15000 * 28 * 28 if scale.real else 80000
    pixels = pixels_class(size={"shortest_edge": 2 * 56 * 56, "longest_edge": most})
    return pictures_only(processor_class)(pixels, tokenizer(), None)


GLM_4_1V, GLM_4_5V, GLM_4_6V = (
    Family(name, IMAGE, model_class, partial(config, config_class, text, vision), partial(processor, *parts), MARKERS)
    for name, model_class, config_class, text, vision, parts in (
        ("glm-4.1v", Glm4vForConditionalGeneration, Glm4vConfig, "glm4v_text", "glm4v_vision",
         (Glm4vProcessor, Glm4vImageProcessorPil)),
        ("glm-4.5v", Glm4vMoeForConditionalGeneration, Glm4vMoeConfig, "glm4v_moe_text", "glm4v_moe_vision",
         (Glm4vProcessor, Glm4vImageProcessorPil)),
        ("glm-4.6v", Glm46VForConditionalGeneration, Glm46VConfig, "glm4v_text", "glm4v_vision",
         (Glm46VProcessor, Glm46VImageProcessorPil)),
    )
)  # fmt: skip
