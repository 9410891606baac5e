"""Every model family, small: random weights made from a config, and the family's own processor."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from conftest import TEXT_LAYERS
from PIL import Image
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SiglipVisionConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
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

from ptp.loader import pictures_only
from ptp.tiny.model import build_tokenizer

MARKERS = (
    "<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<|image_pad|>", "<|video_pad|>",
    "<|vision_start|>", "<|vision_end|>", *(f"<row_{r}_col_{c}>" for r in range(1, 7) for c in range(1, 7)),
)  # fmt: skip


@cache
def tokenizer() -> Any:
    """The embedded model's, with the markers of every family."""
    made = build_tokenizer()
    made.add_tokens(list(MARKERS), special_tokens=True)
    return made


def token_id(token: str) -> int:
    return tokenizer().convert_tokens_to_ids(token)


def text_config(kind: str, **more: Any) -> dict[str, Any]:
    return dict(
        model_type=kind, hidden_size=48, num_hidden_layers=TEXT_LAYERS, num_attention_heads=4, num_key_value_heads=2,
        head_dim=12, intermediate_size=96, vocab_size=len(tokenizer()), max_position_embeddings=4096,
        eos_token_id=token_id("<|im_end|>"), pad_token_id=token_id("<|endoftext|>"), bos_token_id=None, **more,
    )  # fmt: skip


VISION: dict[str, Any] = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64)
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2]}


@dataclass(frozen=True)
class Family:
    """One family's small model and processor.

    Attributes:
        name: Of the family; image: its placeholder for a picture in a prompt.
        config, model_class: What the model is made from.
        processor: Makes inputs as the family's own does.
        nested: Whether it wants a list of pictures for every prompt.
        sizes: (width, height) of pictures to try it on.
    """

    name: str
    image: str
    model_class: type[PreTrainedModel]
    config: Callable[[], Any]
    processor: Callable[[], Any]
    nested: bool = False
    sizes: tuple[tuple[int, int], ...] = ((300, 200), (120, 260), (100, 100))

    def model(self, attention: str = "sdpa") -> Any:
        """The model; the same weights under every attention."""
        return _model(self, attention)

    def encode(self, *prompts: tuple[list[Image.Image], str]) -> dict[str, Tensor]:
        """Model inputs of a left-padded batch of (pictures, question)."""
        processor = _processor(self)
        texts = [
            f"<|im_start|>user\n{f'{self.image}' * len(pictures)}\n{question}<|im_end|>\n<|im_start|>assistant\n"
            for pictures, question in prompts
        ]
        pictures = [list(mine) for mine, _ in prompts]
        if not any(pictures):
            return dict(processor(text=texts, padding=True, return_tensors="pt"))
        images = pictures if self.nested else [picture for mine in pictures for picture in mine]
        return dict(processor(text=texts, images=images, padding=True, return_tensors="pt"))


@cache
def _processor(family: Family) -> Any:
    return family.processor()


@cache
def _model(family: Family, attention: str) -> Any:
    torch.manual_seed(0)
    config = family.config()
    config._attn_implementation = attention
    model: Any = family.model_class._from_config(config, attn_implementation=attention).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
            if "position_embedding" in name or "pos_embed" in name or "class_embedding" in name or "cls_token" in name:
                torch.nn.init.normal_(parameter, std=0.5)
            if "q_proj.weight" in name or "k_proj.weight" in name:
                parameter.mul_(2.0)
            if "qkv.weight" in name:
                parameter[: 2 * parameter.shape[1]].mul_(2.0)
    model.generation_config.eos_token_id = None  # random answers have no end
    model.generation_config.pad_token_id = token_id("<|endoftext|>")
    return model


def photo(seed: int, size: tuple[int, int]) -> Image.Image:
    """Smooth colour noise: every part of the picture looks different."""
    small = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def _internvl() -> Any:
    vision = VISION | dict(attention_bias=True, image_size=[112, 112], patch_size=[14, 14], layer_scale_init_value=1.0)
    return InternVLConfig(
        vision_config=vision, text_config=text_config("qwen2"), image_token_id=token_id("<IMG_CONTEXT>"), image_seq_length=16,
        tie_word_embeddings=False,
    )  # fmt: skip


def _internvl_processor() -> Any:
    tiles = GotOcr2ImageProcessorPil(size={"height": 112, "width": 112}, crop_to_patches=True, min_patches=1, max_patches=6)
    return pictures_only(InternVLProcessor)(tiles, tokenizer(), None, image_seq_length=16)


CLIP_PINPOINTS = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]


def _llava_next() -> Any:
    vision = CLIPVisionConfig(**VISION, image_size=56, patch_size=14, projection_dim=32)
    return LlavaNextConfig(
        vision_config=vision, text_config=text_config("llama"), image_token_id=token_id("<image>"),
        image_grid_pinpoints=CLIP_PINPOINTS, vision_feature_layer=-2, tie_word_embeddings=False,
    )  # fmt: skip


def _llava_next_processor() -> Any:
    tiles = LlavaNextImageProcessorPil(
        size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}, image_grid_pinpoints=CLIP_PINPOINTS
    )
    return LlavaNextProcessor(
        tiles, tokenizer(), patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )


SIGLIP_PINPOINTS = [[60 * h, 60 * w] for h in range(1, 4) for w in range(1, 4)]


def _llava_onevision() -> Any:
    vision = SiglipVisionConfig(**VISION, image_size=60, patch_size=14, vision_use_head=False)  # 4 px of a tile are not seen
    return LlavaOnevisionConfig(
        vision_config=vision, text_config=text_config("qwen2"), image_token_id=token_id("<image>"),
        video_token_id=token_id("<video>"), image_grid_pinpoints=SIGLIP_PINPOINTS, vision_aspect_ratio="anyres_max_3",
        vision_feature_layer=-1, tie_word_embeddings=False,
    )  # fmt: skip


def _llava_onevision_processor() -> Any:
    tiles = LlavaOnevisionImageProcessorPil(size={"height": 60, "width": 60}, image_grid_pinpoints=SIGLIP_PINPOINTS)
    return pictures_only(LlavaOnevisionProcessor)(
        tiles, tokenizer(), None, num_image_tokens=16, vision_feature_select_strategy="full", vision_aspect_ratio="anyres_max_3"
    )


def _idefics(config_class: type) -> Any:
    return config_class(
        vision_config=VISION | dict(image_size=112, patch_size=14), text_config=text_config("llama"), scale_factor=2,
        image_token_id=token_id("<image>"), pad_token_id=token_id("<|endoftext|>"), tie_word_embeddings=False,
    )  # fmt: skip


def _idefics_processor() -> Any:
    tiles = Idefics3ImageProcessorPil(size={"longest_edge": 336}, max_image_size={"longest_edge": 112})
    return Idefics3Processor(tiles, tokenizer(), image_seq_len=16)


def _qwen2_5_vl() -> Any:
    vision = dict(
        hidden_size=32, depth=3, num_heads=2, intermediate_size=64, out_hidden_size=48, patch_size=14, window_size=56,
        fullatt_block_indexes=[0, 2], spatial_merge_size=2, temporal_patch_size=2,
    )  # fmt: skip
    return Qwen2_5_VLConfig(
        vision_config=vision, text_config=text_config("qwen2_5_vl_text", rope_parameters=MROPE),
        image_token_id=token_id("<|image_pad|>"), video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"), vision_end_token_id=token_id("<|vision_end|>"),
        tie_word_embeddings=False,
    )  # fmt: skip


def _qwen3_vl() -> Any:
    vision = dict(
        hidden_size=32, depth=3, num_heads=2, intermediate_size=64, out_hidden_size=48, patch_size=14,
        num_position_embeddings=64, spatial_merge_size=2, temporal_patch_size=2, deepstack_visual_indexes=[0, 1],
    )  # fmt: skip
    return Qwen3VLConfig(
        vision_config=vision, text_config=text_config("qwen3_vl_text", rope_parameters=MROPE),
        image_token_id=token_id("<|image_pad|>"), video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"), vision_end_token_id=token_id("<|vision_end|>"),
        tie_word_embeddings=False,
    )  # fmt: skip


def _qwen(processor_class: type) -> Any:
    pixels = Qwen2VLImageProcessorPil(size={"shortest_edge": 56 * 56, "longest_edge": 40000}, patch_size=14)
    return pictures_only(processor_class)(pixels, tokenizer(), None)


QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
FAMILIES = {
    family.name: family
    for family in (
        Family("internvl", "<IMG_CONTEXT>", InternVLForConditionalGeneration, _internvl, _internvl_processor),
        Family("llava_next", "<image>", LlavaNextForConditionalGeneration, _llava_next, _llava_next_processor),
        Family(
            "llava_onevision",
            "<image>",
            LlavaOnevisionForConditionalGeneration,
            _llava_onevision,
            _llava_onevision_processor,
            True,
        ),  # fmt: skip
        Family(
            "smolvlm", "<image>", SmolVLMForConditionalGeneration, lambda: _idefics(SmolVLMConfig), _idefics_processor, True
        ),
        Family(
            "idefics3", "<image>", Idefics3ForConditionalGeneration, lambda: _idefics(Idefics3Config), _idefics_processor, True
        ),
        Family("qwen2_5_vl", QWEN_IMAGE, Qwen2_5_VLForConditionalGeneration, _qwen2_5_vl, lambda: _qwen(Qwen2_5_VLProcessor)),
        Family("qwen3_vl", QWEN_IMAGE, Qwen3VLForConditionalGeneration, _qwen3_vl, lambda: _qwen(Qwen3VLProcessor)),
    )
}
