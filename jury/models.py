"""The jurors: small models of real transformers classes, their tokenizers and their families' own processors.

Whatever the family, a visual token shows 28 px and pictures are taken as they were drawn, so that all jurors see the same.
"""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.idefics3.processing_idefics3 import Idefics3Processor
from transformers.models.internvl.processing_internvl import InternVLProcessor
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from ptp.loader import pictures_only
from ptp.tiny.drawing import CELL, GRIDS, TILE
from ptp.tiny.lessons import CELLS
from ptp.tiny.model import (
    CHAT_TEMPLATE,
    IMAGE_MEAN,
    IMAGE_STD,
    IMAGE_TOKEN,
    PATCH,
    TOKENS_PER_TILE,
    build_image_processor,
    build_tokenizer,
    sincos_positions,
    token_id,
)

SMALL_GRIDS = ((1, 1), (2, 1), (1, 2))
"""Grids of fewer tiles than pictures are asked about in an evaluation: where learning begins."""
COLORS = {"image_mean": list(IMAGE_MEAN), "image_std": list(IMAGE_STD)}
VISION = dict(hidden_size=128, num_hidden_layers=6, num_attention_heads=4, intermediate_size=512)
ROWS, COLUMNS = max(rows for _, rows in GRIDS), max(columns for columns, _ in GRIDS)


@dataclass(frozen=True)
class Juror:
    """A juror before it is trained.

    Attributes:
        image: Its placeholder for a picture in a prompt.
        markers: Tokens of its family that the tokenizer of `ptp-tiny` lacks.
        model_class: Of transformers.
        config: Makes its configuration of the tokenizer.
        processor: Makes its family's own processor of the tokenizer.
        cells: What the encoder returned of a batch's (columns, rows) tiles, as (B, V, 16, D), the mean over the patches of
            each 28 px of each tile in raster order, then of the thumbnail, where there is one; and (B, V, D), [CLS] of each,
            or None.
        positions: The name of its encoder's position embeddings, which start as sines and cosines; empty where it has none.
        nested: Whether its processor wants a list of pictures for every prompt.
        video: Class of the video processor that its processor wants where torchvision is there.
    """

    image: str
    markers: tuple[str, ...]
    model_class: Any
    config: Callable[[PreTrainedTokenizerFast], Any]
    processor: Callable[[PreTrainedTokenizerFast], Any]
    cells: Callable[[Tensor, int, tuple[int, int]], tuple[Tensor, Tensor | None]]
    positions: str = ""
    nested: bool = False
    video: str = ""

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """That of `ptp-tiny`, with the family's markers and placeholder."""
        tokenizer = build_tokenizer()
        tokenizer.add_tokens([marker for marker in self.markers if marker not in tokenizer.get_vocab()], special_tokens=True)
        tokenizer.chat_template = CHAT_TEMPLATE.replace(IMAGE_TOKEN, self.image)
        return tokenizer

    def build(self, tokenizer: PreTrainedTokenizerFast, seed: int) -> Any:
        """A fresh model: Xavier weights, encoder positions as sines and cosines, as in `ptp.tiny.model.build_model`."""
        torch.manual_seed(seed)
        model = self.model_class(self.config(tokenizer))
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, nn.Linear):
                    nn.init.xavier_uniform_(module.weight)
                elif isinstance(module, nn.Conv2d | nn.Conv3d):
                    nn.init.xavier_uniform_(module.weight.view(module.out_channels, -1))
            nn.init.normal_(model.lm_head.weight, std=model.lm_head.in_features**-0.5)  # tied: the embeddings, too
            for name, parameter in model.named_parameters():
                if self.positions and name.endswith(self.positions):
                    places, width = parameter.shape[-2:]
                    waves = 0.5 * sincos_positions(int(places**0.5), width)[0]
                    parameter.copy_(waves[-places:].view_as(parameter))  # without [CLS]: without its zeros
                elif name.endswith(("cls_token", "class_embedding", "image_newline")):
                    nn.init.normal_(parameter, std=0.5)
        return model

    def save(self, model: Any, tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
        """Write a complete checkpoint in half precision, that `ptp.load` takes with torchvision and without it."""
        eos, pad = token_id(tokenizer, "<|im_end|>"), token_id(tokenizer, "<|endoftext|>")
        model.generation_config = GenerationConfig(eos_token_id=eos, pad_token_id=pad)
        halved = copy.deepcopy(model)  # the model's own rotary frequencies, which are not saved, stay as exact as they are
        nn.Module.half(halved)
        halved.save_pretrained(directory)
        processor = self.processor(tokenizer)
        if not self.video:
            processor.save_pretrained(directory)
            processor.image_processor.save_pretrained(directory)
            return
        tokenizer.save_pretrained(directory)
        processor.image_processor.save_pretrained(directory)
        names = {"processor_class": type(processor).__name__}
        length = {"image_seq_length": TOKENS_PER_TILE} if isinstance(processor, InternVLProcessor) else {}
        (directory / "processor_config.json").write_text(json.dumps(names | length, indent=2) + "\n")
        video = {"video_processor_type": self.video} | COLORS
        if length:
            video["size"] = {"height": TILE, "width": TILE}
        (directory / "video_preprocessor_config.json").write_text(json.dumps(video, indent=2) + "\n")


def text(kind: str, layers: int, tokenizer: PreTrainedTokenizerFast, **more: Any) -> dict[str, Any]:
    """A language model of so many layers; with 12 it is narrower, so that it costs little more than one of 6."""
    deep = layers > 6
    width, heads, head_dim, mlp = (160, 4, 40, 384) if deep else (192, 6, 32, 512)
    return dict(
        model_type=kind,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=2,
        head_dim=head_dim,
        intermediate_size=mlp,
        vocab_size=len(tokenizer),
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=token_id(tokenizer, "<|im_end|>"),
        pad_token_id=token_id(tokenizer, "<|endoftext|>"),
        **({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}} | more),
    )


def raster(states: Tensor, pictures: int, grid: tuple[int, int]) -> tuple[Tensor, None]:
    """Tiles of 8 x 8 patches in raster order, without [CLS]."""
    side = CELLS, TILE // PATCH // CELLS
    return states.view(pictures, -1, *side, *side, states.shape[-1]).mean(dim=(3, 5)).flatten(2, 3), None


def raster_and_cls(states: Tensor, pictures: int, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The same behind [CLS]."""
    return raster(states[:, 1:], pictures, grid)[0], states[:, 0].view(pictures, -1, states.shape[-1])


def merged(states: Tensor, pictures: int, grid: tuple[int, int]) -> tuple[Tensor, None]:
    """Windows of a tile, the patches of a visual token one after another."""
    return states.view(pictures, -1, CELLS**2, (TILE // PATCH // CELLS) ** 2, states.shape[-1]).mean(dim=3), None


def cells_and_cls(states: Tensor, pictures: int, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Tiles of 4 x 4 patches behind [CLS], the thumbnail's first."""
    whole = states.view(pictures, -1, 1 + CELLS**2, states.shape[-1]).roll(-1, dims=1)
    return whole[:, :, 1:], whole[:, :, 0]


def internvl_config(tokenizer: PreTrainedTokenizerFast) -> Any:
    """InternViT with [CLS], Qwen2 of 12 layers."""
    return InternVLConfig(
        vision_config=VISION
        | dict(attention_bias=True, image_size=[TILE] * 2, patch_size=[PATCH] * 2, layer_scale_init_value=1.0),
        text_config=text("qwen2", 12, tokenizer),
        image_token_id=token_id(tokenizer, IMAGE_TOKEN),
        image_seq_length=TOKENS_PER_TILE,
        downsample_ratio=0.5,
        tie_word_embeddings=True,
    )


def internvl_processor(tokenizer: PreTrainedTokenizerFast) -> Any:
    """Up to 12 tiles, and a thumbnail where there are two or more."""
    return pictures_only(InternVLProcessor)(
        build_image_processor(), tokenizer, None, image_seq_length=TOKENS_PER_TILE, chat_template=tokenizer.chat_template
    )


def idefics_config(tokenizer: PreTrainedTokenizerFast) -> Any:
    """SigLIP without [CLS], Llama of 6 layers."""
    return Idefics3Config(
        vision_config=VISION | dict(image_size=TILE, patch_size=PATCH),
        text_config=text("llama", 6, tokenizer),
        scale_factor=2,
        image_token_id=token_id(tokenizer, "<image>"),
        pad_token_id=token_id(tokenizer, "<|endoftext|>"),
        tie_word_embeddings=True,
    )


def idefics_processor(tokenizer: PreTrainedTokenizerFast) -> Any:
    """Tiles behind their markers. Nothing is enlarged: Idefics3's own `do_resize` brings every picture to one size."""
    sizes = dict(size={"longest_edge": TILE * max(ROWS, COLUMNS)}, max_image_size={"longest_edge": TILE}, do_resize=False)
    pictures = Idefics3ImageProcessorPil(**sizes, **COLORS)
    return Idefics3Processor(pictures, tokenizer, image_seq_len=TOKENS_PER_TILE, chat_template=tokenizer.chat_template)


def llava_config(tokenizer: PreTrainedTokenizerFast) -> Any:
    """CLIP of 28 px patches with [CLS], Llama of 6 layers; nothing is merged, so a patch is a visual token."""
    vision = dict(hidden_size=192, num_hidden_layers=6, num_attention_heads=6, intermediate_size=768)
    return LlavaNextConfig(
        vision_config=CLIPVisionConfig(**vision, image_size=TILE, patch_size=CELL, projection_dim=32),
        text_config=text("llama", 6, tokenizer),
        image_token_index=token_id(tokenizer, "<image>"),
        image_grid_pinpoints=[[TILE * rows, TILE * columns] for columns, rows in (*SMALL_GRIDS, *GRIDS)],
        vision_feature_layer=-1,
        tie_word_embeddings=True,
    )


def llava_processor(tokenizer: PreTrainedTokenizerFast) -> Any:
    """The thumbnail, then one raster over all tiles with a newline after each row."""
    pictures = LlavaNextImageProcessorPil(
        size={"shortest_edge": TILE},
        crop_size={"height": TILE, "width": TILE},
        image_grid_pinpoints=[[TILE * rows, TILE * columns] for columns, rows in (*SMALL_GRIDS, *GRIDS)],
        **COLORS,
    )
    how = {"vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return LlavaNextProcessor(pictures, tokenizer, patch_size=CELL, chat_template=tokenizer.chat_template, **how)


def qwen_config(tokenizer: PreTrainedTokenizerFast) -> Any:
    """Pictures whole; attention in windows of a tile but for two layers; Qwen2.5 of 12 layers with M-RoPE."""
    layers = text("qwen2_5_vl_text", 12, tokenizer)
    half = layers["head_dim"] // 2
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [half - 2 * (half // 3), half // 3, half // 3]}
    vision = dict(hidden_size=128, depth=6, num_heads=4, intermediate_size=352, out_hidden_size=layers["hidden_size"])
    return Qwen2_5_VLConfig(
        vision_config=vision
        | dict(patch_size=PATCH, spatial_merge_size=2, temporal_patch_size=2, window_size=TILE, fullatt_block_indexes=[2, 5]),
        text_config=layers | {"rope_parameters": rope},
        image_token_id=token_id(tokenizer, "<|image_pad|>"),
        video_token_id=token_id(tokenizer, "<|video_pad|>"),
        vision_start_token_id=token_id(tokenizer, "<|vision_start|>"),
        vision_end_token_id=token_id(tokenizer, "<|vision_end|>"),
        tie_word_embeddings=True,
    )


def qwen_processor(tokenizer: PreTrainedTokenizerFast) -> Any:
    """Pictures at their own size, up to that of 12 tiles."""
    pictures = Qwen2VLImageProcessorPil(
        size={"shortest_edge": TILE**2, "longest_edge": 12 * TILE**2}, patch_size=PATCH, **COLORS
    )
    return pictures_only(Qwen2_5_VLProcessor)(pictures, tokenizer, None, chat_template=tokenizer.chat_template)


AROUND = "<fake_token_around_image>"
QWEN_MARKERS = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
PLACES = tuple(f"<row_{row}_col_{column}>" for row in range(1, ROWS + 1) for column in range(1, COLUMNS + 1))

JURORS = {
    "internvl": Juror(
        IMAGE_TOKEN, (), InternVLForConditionalGeneration, internvl_config, internvl_processor, raster_and_cls,
        "embeddings.position_embeddings", video="InternVLVideoProcessor",
    ),
    "qwen": Juror(
        "<|vision_start|><|image_pad|><|vision_end|>", QWEN_MARKERS, Qwen2_5_VLForConditionalGeneration, qwen_config,
        qwen_processor, merged, video="Qwen2VLVideoProcessor",
    ),
    "idefics": Juror(
        "<image>", ("<image>", AROUND, "<global-img>", "<end_of_utterance>", *PLACES), Idefics3ForConditionalGeneration,
        idefics_config, idefics_processor, raster, "position_embedding.weight", nested=True,
    ),
    "llava": Juror(
        "<image>", ("<image>",), LlavaNextForConditionalGeneration, llava_config, llava_processor,
        cells_and_cls, "position_embedding.weight",
    ),
}  # fmt: skip
