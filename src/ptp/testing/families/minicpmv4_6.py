"""MiniCPM-V 4.6, small and of real size: an encoder that merges patches amid its layers, and Qwen3.5's language model."""

from typing import Any

from transformers import MiniCPMV4_6Config, MiniCPMV4_6ForConditionalGeneration, PreTrainedTokenizerFast
from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import MiniCPMV4_6ImageProcessorPil
from transformers.models.minicpmv4_6.processing_minicpmv4_6 import MiniCPMV4_6Processor

from ...loader import NO_VIDEOS, pictures_only
from ..family import Family, Scale, token_id, tokenizer
from .qwen3_5 import qwen3_5

NAMES = (
    "image", "video", "image_start", "image_end", "slice_start", "slice_end", "image_id_start", "image_id_end",
)  # fmt: skip
MARKERS = ("<|image_pad|>", "<|video_pad|>", "<image>", "</image>", "<slice>", "</slice>", "<image_id>", "</image_id>")


def config(scale: Scale) -> MiniCPMV4_6Config:
    """2 x 2 patches become one behind the seventh layer, and 2 x 2 of these a token; small: behind the second."""
    patch, side = (14, 448) if scale.real else (8, 64)
    mlp = scale.mlp // 2 if scale.real else scale.mlp  # where patches merge it is four times as wide
    return MiniCPMV4_6Config(
        vision_config=scale.vision() | dict(patch_size=patch, image_size=side, intermediate_size=mlp),
        text_config=qwen3_5(scale).text_config.to_dict(),
        insert_layer_id=min(6, scale.layers - 2), image_size=side, tie_word_embeddings=False,
        image_token_id=token_id("<|image_pad|>"), video_token_id=token_id("<|video_pad|>"),
    )  # fmt: skip


def processor(scale: Scale) -> Any:
    """Up to nine slices and the whole picture."""
    names = {f"{name}_token": marker for name, marker in zip(NAMES, MARKERS, strict=True)}
    special = {"eos_token": tokenizer().eos_token, "pad_token": tokenizer().pad_token, "padding_side": "left"}
    own = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer().backend_tokenizer, extra_special_tokens=names,
        chat_template=tokenizer().chat_template, **special,
    )  # fmt: skip
    patch, side = (14, 448) if scale.real else (8, 128)
    slices = MiniCPMV4_6ImageProcessorPil(patch_size=patch, scale_resolution=side)
    return pictures_only(MiniCPMV4_6Processor)(slices, NO_VIDEOS, own)


MINICPM_V_4_6 = Family(
    "minicpm-v-4.6", "<|image_pad|>", MiniCPMV4_6ForConditionalGeneration, config, processor, MARKERS, nested=True
)
