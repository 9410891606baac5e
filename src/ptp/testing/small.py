"""Small models with random weights whose attention is far from uniform, and pictures to try them on."""

from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image

from .family import Family, Scale, token_id, words

TEXT = dict(
    hidden_size=48, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=12, intermediate_size=128
)
SMALL = Scale(hidden=32, layers=3, heads=2, mlp=64, text=TEXT, real=False)
"""What every family is tested at."""
WIDER = Scale(hidden=64, layers=3, heads=2, mlp=128, text=TEXT | dict(hidden_size=64, head_dim=16), real=False)
"""For weights that are quantised in blocks of 64."""
SIZES = ((300, 200), (120, 260), (100, 100))
"""(width, height) of pictures to try a family on."""
PLACES = ("position_embedding", "pos_embed", "class_embedding", "cls_token")


def small_model(family: Family, attention: str = "sdpa", wider: bool = False) -> Any:
    """A family's small model, always the same one; the same weights under every attention."""
    return _built(family, attention, wider)


@cache
def _built(family: Family, attention: str, wider: bool) -> Any:
    model = sharpen(family.build(WIDER if wider else SMALL, attention=attention))
    with torch.no_grad():
        model.lm_head.weight[words() :] = 0.0  # random answers hold no pictures
    model.generation_config.eos_token_id = None  # nor do they end
    model.generation_config.pad_token_id = token_id("<|endoftext|>")
    return model


@cache
def small_processor(family: Family) -> Any:
    """The processor of a family's small model, with a chat template."""
    processor = family.processor(SMALL)
    processor.chat_template = family.chat_template
    return processor


@torch.no_grad()
def sharpen(model: Any, seed: int = 1) -> Any:
    """Draw a model's weights anew, so that its attention is far from uniform and a wrong token is seen in the output.

    The usual initialisation is so narrow that every attention is nearly the mean, and an adapter that reads the wrong place
    goes unnoticed.

    Returns:
        The model.
    """
    torch.manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        if any(part in name for part in PLACES):
            torch.nn.init.normal_(parameter, std=0.5)
        if "q_proj.weight" in name or "k_proj.weight" in name:
            parameter.mul_(2.0)
        if "qkv.weight" in name:
            parameter[: 2 * parameter.shape[1]].mul_(2.0)
    return model


def photo(seed: int, size: tuple[int, int]) -> Image.Image:
    """Smooth colour noise of (width, height): every part of the picture looks different."""
    small = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
