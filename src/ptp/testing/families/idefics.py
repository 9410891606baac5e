"""SmolVLM and Idefics3, small and of real size."""

from functools import partial
from typing import Any

from transformers import Idefics3Config, Idefics3ForConditionalGeneration, SmolVLMConfig, SmolVLMForConditionalGeneration
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.idefics3.processing_idefics3 import Idefics3Processor

from ..family import Family, Scale, token_id, tokenizer

MARKERS = (
    "<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>",
    *(f"<row_{r}_col_{c}>" for r in range(1, 7) for c in range(1, 7)),
)  # fmt: skip


def config(config_class: type, scale: Scale) -> Any:
    """SigLIP without [CLS]; Llama."""
    side, patch, factor = (512, 16, 4) if scale.real else (112, 14, 2)
    return config_class(
        vision_config=scale.vision() | dict(image_size=side, patch_size=patch), text_config=scale.language("llama"),
        scale_factor=factor, image_token_id=token_id("<image>"), pad_token_id=token_id("<|endoftext|>"),
        tie_word_embeddings=False,
    )  # fmt: skip


def processor(scale: Scale) -> Any:
    """Up to 16 tiles and a thumbnail, each behind its marker; small: nine."""
    side, edge, tokens = (512, 2048, 64) if scale.real else (112, 336, 16)
    tiles = Idefics3ImageProcessorPil(size={"longest_edge": edge}, max_image_size={"longest_edge": side})
    return Idefics3Processor(tiles, tokenizer(), image_seq_len=tokens)


SMOLVLM, IDEFICS3 = (
    Family(name, "<image>", model_class, partial(config, config_class), processor, MARKERS, nested=True)
    for name, model_class, config_class in (
        ("smolvlm", SmolVLMForConditionalGeneration, SmolVLMConfig),
        ("idefics3", Idefics3ForConditionalGeneration, Idefics3Config),
    )
)
