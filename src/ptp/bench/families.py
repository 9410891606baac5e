"""Models of every family from configurations, random weights, with the family's own processor: nothing is downloaded."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SiglipVisionConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.gemma3.processing_gemma3 import Gemma3Processor
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.idefics3.processing_idefics3 import Idefics3Processor
from transformers.models.internvl.processing_internvl import InternVLProcessor
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

from ..loader import pictures_only
from ..tiny.model import build_tokenizer

MARKERS = (
    "<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<|image_pad|>", "<|video_pad|>",
    "<|vision_start|>", "<|vision_end|>", "<start_of_image>", "<end_of_image>",
    "<image_soft_token>", *(f"<row_{r}_col_{c}>" for r in range(1, 7) for c in range(1, 7)),
)  # fmt: skip


@cache
def tokenizer() -> Any:
    """The embedded model's, with the markers of every family."""
    made = build_tokenizer()
    made.add_tokens(list(MARKERS), special_tokens=True)
    return made


def token_id(token: str) -> int:
    """The id of one token."""
    return tokenizer().convert_tokens_to_ids(token)


@dataclass(frozen=True)
class Scale:
    """How large a model is.

    Attributes:
        hidden, layers, heads, mlp: Of the vision encoder.
        text: Settings of the language model.
        real: Whether tiles, patches and windows have the sizes of published checkpoints, or small ones.
    """

    hidden: int
    layers: int
    heads: int
    mlp: int
    text: dict[str, Any]
    real: bool

    def vision(self) -> dict[str, Any]:
        """In the words of most vision configurations."""
        names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        return dict(zip(names, (self.hidden, self.layers, self.heads, self.mlp), strict=True))

    def language(self, kind: str, **more: Any) -> dict[str, Any]:
        """The language model as one of `kind`."""
        special = {"eos_token_id": token_id("<|im_end|>"), "pad_token_id": token_id("<|endoftext|>"), "bos_token_id": None}
        sizes = {"vocab_size": len(tokenizer()), "max_position_embeddings": 32768}
        return {"model_type": kind, **sizes, **special, **self.text, **more}

    def mrope(self) -> dict[str, Any]:
        """Rotary positions along time, height and width."""
        half = self.text["head_dim"] // 2
        return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [half - 2 * (half // 3), half // 3, half // 3]}


@dataclass(frozen=True)
class Family:
    """A family's model and processor, of any scale.

    Attributes:
        name: Of the family. image: Its placeholder for a picture in a prompt.
        model_class, config, processor: What they are made by.
        nested: Whether the processor wants a list of pictures for every prompt.
    """

    name: str
    image: str
    model_class: type[PreTrainedModel]
    config: Callable[[Scale], Any]
    processor: Callable[[Scale], Any]
    nested: bool = False

    def encode(self, processor: Any, prompts: Sequence[tuple[Sequence[Image.Image], str]]) -> dict[str, Tensor]:
        """Model inputs of a left-padded batch of (pictures, question)."""
        texts = [
            f"<|im_start|>user\n{self.image * len(pictures)}\n{question}<|im_end|>\n<|im_start|>assistant\n"
            for pictures, question in prompts
        ]
        pictures = [list(mine) for mine, _ in prompts]
        if not any(pictures):
            return dict(processor(text=texts, padding=True, return_tensors="pt"))
        images = pictures if self.nested else [picture for mine in pictures for picture in mine]
        return dict(processor(text=texts, images=images, padding=True, return_tensors="pt"))

    def build(self, scale: Scale, dtype: torch.dtype = torch.float32, attention: str = "sdpa") -> Any:
        """A model with the weights that its own initialisation draws, always the same."""
        torch.manual_seed(0)
        return self.model_class._from_config(self.config(scale), dtype=dtype, attn_implementation=attention).eval()


def _internvl(scale: Scale) -> Any:
    side = 448 if scale.real else 112
    vision = scale.vision() | dict(attention_bias=True, image_size=[side] * 2, patch_size=[14] * 2, layer_scale_init_value=1.0)
    return InternVLConfig(
        vision_config=vision, text_config=scale.language("qwen2"), image_token_id=token_id("<IMG_CONTEXT>"),
        image_seq_length=(side // 28) ** 2, tie_word_embeddings=False,
    )  # fmt: skip


def _internvl_processor(scale: Scale) -> Any:
    side, most = (448, 12) if scale.real else (112, 6)
    tiles = GotOcr2ImageProcessorPil(
        size={"height": side, "width": side}, crop_to_patches=True, min_patches=1, max_patches=most
    )
    return pictures_only(InternVLProcessor)(tiles, tokenizer(), None, image_seq_length=(side // 28) ** 2)


def _llava_tiles(scale: Scale) -> tuple[int, list[list[int]]]:
    side = 336 if scale.real else 56
    return side, [[side * h, side * w] for h, w in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))]


def _llava_next(scale: Scale) -> Any:
    side, pinpoints = _llava_tiles(scale)
    vision = CLIPVisionConfig(**scale.vision(), image_size=side, patch_size=14, projection_dim=32)
    return LlavaNextConfig(
        vision_config=vision, text_config=scale.language("llama"), image_token_index=token_id("<image>"),
        image_grid_pinpoints=pinpoints, vision_feature_layer=-2, tie_word_embeddings=False,
    )  # fmt: skip


def _llava_next_processor(scale: Scale) -> Any:
    side, pinpoints = _llava_tiles(scale)
    crop = {"height": side, "width": side}
    tiles = LlavaNextImageProcessorPil(size={"shortest_edge": side}, crop_size=crop, image_grid_pinpoints=pinpoints)
    strategy = {"vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return LlavaNextProcessor(tiles, tokenizer(), patch_size=14, **strategy)


def _onevision_tiles(scale: Scale) -> tuple[int, list[list[int]], str]:
    side, most, ratio = (384, 6, "anyres_max_9") if scale.real else (60, 3, "anyres_max_3")  # 4 or 6 px are in no patch
    return side, [[side * h, side * w] for h in range(1, most + 1) for w in range(1, most + 1)], ratio


def _onevision(scale: Scale) -> Any:
    side, pinpoints, ratio = _onevision_tiles(scale)
    vision = SiglipVisionConfig(**scale.vision(), image_size=side, patch_size=14, vision_use_head=False)
    return LlavaOnevisionConfig(
        vision_config=vision, text_config=scale.language("qwen2"), image_token_index=token_id("<image>"),
        video_token_index=token_id("<video>"), image_grid_pinpoints=pinpoints, vision_aspect_ratio=ratio,
        vision_feature_layer=-1, tie_word_embeddings=False,
    )  # fmt: skip


def _onevision_processor(scale: Scale) -> Any:
    side, pinpoints, ratio = _onevision_tiles(scale)
    tiles = LlavaOnevisionImageProcessorPil(size={"height": side, "width": side}, image_grid_pinpoints=pinpoints)
    settings = {"vision_feature_select_strategy": "full", "vision_aspect_ratio": ratio}
    return pictures_only(LlavaOnevisionProcessor)(tiles, tokenizer(), None, num_image_tokens=(side // 14) ** 2, **settings)


def _idefics(scale: Scale, config_class: type) -> Any:
    side, patch, factor = (512, 16, 4) if scale.real else (112, 14, 2)
    return config_class(
        vision_config=scale.vision() | dict(image_size=side, patch_size=patch), text_config=scale.language("llama"),
        scale_factor=factor, image_token_id=token_id("<image>"), pad_token_id=token_id("<|endoftext|>"),
        tie_word_embeddings=False,
    )  # fmt: skip


def _idefics_processor(scale: Scale) -> Any:
    side, edge, tokens = (512, 2048, 64) if scale.real else (112, 336, 16)
    tiles = Idefics3ImageProcessorPil(size={"longest_edge": edge}, max_image_size={"longest_edge": side})
    return Idefics3Processor(tiles, tokenizer(), image_seq_len=tokens)


def _qwen(scale: Scale, config_class: type, text: str, **vision: Any) -> Any:
    sizes = dict(hidden_size=scale.hidden, depth=scale.layers, num_heads=scale.heads, intermediate_size=scale.mlp)
    merge = dict(out_hidden_size=scale.text["hidden_size"], spatial_merge_size=2, temporal_patch_size=2)
    return config_class(
        vision_config=sizes | merge | vision, text_config=scale.language(text, rope_parameters=scale.mrope()),
        image_token_id=token_id("<|image_pad|>"), video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"), vision_end_token_id=token_id("<|vision_end|>"),
        tie_word_embeddings=False,
    )  # fmt: skip


def _qwen2_5_vl(scale: Scale) -> Any:
    whole = [n for n in range(scale.layers) if (scale.layers - 1 - n) % (scale.layers // 4 or 2) == 0]
    window = 112 if scale.real else 56
    return _qwen(scale, Qwen2_5_VLConfig, "qwen2_5_vl_text", patch_size=14, window_size=window, fullatt_block_indexes=whole)


def _qwen3_vl(scale: Scale) -> Any:
    side, deep = (48, [2, 5, 8]) if scale.real else (8, [0, 1])
    settings = dict(patch_size=16, num_position_embeddings=side**2, deepstack_visual_indexes=deep)
    return _qwen(scale, Qwen3VLConfig, "qwen3_vl_text", **settings)


def _qwen_processor(scale: Scale, processor_class: type, patch: int) -> Any:
    most = 16384 * 28 * 28 if scale.real else 40000
    pixels = Qwen2VLImageProcessorPil(size={"shortest_edge": 56 * 56, "longest_edge": most}, patch_size=patch)
    return pictures_only(processor_class)(pixels, tokenizer(), None)


@cache
def gemma_tokenizer() -> Any:
    """The same one, that knows which of its tokens stand around a picture."""
    names = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    special = {"eos_token": tokenizer().eos_token, "pad_token": tokenizer().pad_token, "padding_side": "left"}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer().backend_tokenizer, extra_special_tokens=names,
        chat_template=tokenizer().chat_template, **special,
    )  # fmt: skip


def _gemma3(scale: Scale) -> Any:
    side, window, tokens = (896, 512, 256) if scale.real else (112, 24, 16)
    kinds = [
        "full_attention" if n % (6 if scale.real else 2) == (5 if scale.real else 1) else "sliding_attention" for n in range(64)
    ]
    depth = scale.text["num_hidden_layers"]
    text = scale.language(
        "gemma3_text", sliding_window=window, layer_types=kinds[:depth], query_pre_attn_scalar=scale.text["head_dim"]
    )
    vision = SiglipVisionConfig(**scale.vision(), image_size=side, patch_size=14, vision_use_head=False)
    return Gemma3Config(
        vision_config=vision, text_config=text, mm_tokens_per_image=tokens, boi_token_index=token_id("<start_of_image>"),
        eoi_token_index=token_id("<end_of_image>"), image_token_index=token_id("<image_soft_token>"), tie_word_embeddings=False,
    )  # fmt: skip


def _gemma3_processor(scale: Scale) -> Any:
    side, tokens = (896, 256) if scale.real else (112, 16)
    pictures = Gemma3ImageProcessorPil(size={"height": side, "width": side})
    return Gemma3Processor(pictures, gemma_tokenizer(), image_seq_length=tokens)


QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
FAMILIES = {
    family.name: family
    for family in (
        Family("internvl", "<IMG_CONTEXT>", InternVLForConditionalGeneration, _internvl, _internvl_processor),
        Family("llava-next", "<image>", LlavaNextForConditionalGeneration, _llava_next, _llava_next_processor),
        Family(
            "llava-onevision", "<image>", LlavaOnevisionForConditionalGeneration, _onevision, _onevision_processor, nested=True
        ),
        Family(
            "smolvlm", "<image>", SmolVLMForConditionalGeneration, lambda scale: _idefics(scale, SmolVLMConfig),
            _idefics_processor, nested=True,
        ),
        Family(
            "idefics3", "<image>", Idefics3ForConditionalGeneration, lambda scale: _idefics(scale, Idefics3Config),
            _idefics_processor, nested=True,
        ),
        Family(
            "qwen2.5-vl", QWEN_IMAGE, Qwen2_5_VLForConditionalGeneration, _qwen2_5_vl,
            lambda scale: _qwen_processor(scale, Qwen2_5_VLProcessor, 14),
        ),
        Family(
            "qwen3-vl", QWEN_IMAGE, Qwen3VLForConditionalGeneration, _qwen3_vl,
            lambda scale: _qwen_processor(scale, Qwen3VLProcessor, 16),
        ),
        Family("gemma3", "<start_of_image>", Gemma3ForConditionalGeneration, _gemma3, _gemma3_processor, nested=True),
    )
}  # fmt: skip
"""Families by name."""
