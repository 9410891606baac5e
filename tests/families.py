"""Every model family, small: random weights whose attention is far from uniform, and the family's own processor."""

from functools import cache
from typing import Any

import numpy as np
import torch
from conftest import TEXT_LAYERS
from PIL import Image
from torch import Tensor

from ptp.bench.families import FAMILIES, MARKERS, Family, Scale, token_id, tokenizer
from ptp.methods import METHODS
from ptp.pruner import Pruner
from ptp.runtime import Trace

__all__ = ["FAMILIES", "Family", "token_id", "tokenizer"]

QUESTION = "What is on the red circle?"
WINDOW = 56
"""Side in pixels of the regions of a picture that is not cut into tiles."""

TEXT = dict(
    hidden_size=48,
    num_hidden_layers=TEXT_LAYERS,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=12,
    intermediate_size=128,
)
SMALL = Scale(hidden=32, layers=3, heads=2, mlp=64, text=TEXT, real=False)
WIDER = Scale(hidden=64, layers=3, heads=2, mlp=128, text=TEXT | dict(hidden_size=64, head_dim=16), real=False)
"""For weights that are quantised in blocks of 64."""
SIZES = ((300, 200), (120, 260), (100, 100))
"""(width, height) of pictures to try a family on."""


@cache
def processor_of(family: Family) -> Any:
    return family.processor(SMALL)


def encode(family: Family, *prompts: tuple[list[Image.Image], str]) -> dict[str, Tensor]:
    """Model inputs of a left-padded batch of (pictures, question)."""
    return family.encode(processor_of(family), prompts)


@cache
def model_of(family: Family, attention: str = "sdpa", wider: bool = False) -> Any:
    """The small model; the same weights under every attention."""
    model = family.build(WIDER if wider else SMALL, attention=attention)
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
        for marker in MARKERS:
            model.lm_head.weight[token_id(marker)] = 0.0  # random answers hold no pictures
    model.generation_config.eos_token_id = None  # nor do they end
    model.generation_config.pad_token_id = token_id("<|endoftext|>")
    return model


def photo(seed: int, size: tuple[int, int]) -> Image.Image:
    """Smooth colour noise: every part of the picture looks different."""
    small = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def picture(number: int = 0) -> Image.Image:
    return photo(number, SIZES[number])


def pruner(name: str = "pyramid", **settings: Any) -> Pruner:
    """A method, "pyramid"; or at another layer than its own, "pyramid at 2"."""
    name, _, layer = name.partition(" at ")
    at = {"prune_layer": int(layer)} if layer else {}
    return METHODS[name](**{"keep_ratio": 0.3, "window": WINDOW, **at, **settings})


def prune(model: Any, inputs: dict[str, Tensor], method: Pruner, **call: Any) -> tuple[Any, Trace]:
    """The output of a prefill and its trace."""
    with torch.no_grad(), method(model, tokenizer()) as trace:
        return model(**inputs, **call), trace


def places_of(words: str, ids: Tensor) -> list[int]:
    """Where in a row of ids (S,) some words stand, by trying every stretch of it."""
    for start in range(len(ids)):
        for end in range(start + 1, min(start + 2 * len(words), len(ids)) + 1):
            if tokenizer().decode(ids[start:end]) == words:
                return list(range(start, end))
    raise AssertionError(f"{words!r} is not in the prompt")
