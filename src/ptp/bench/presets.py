"""Models of real shapes with random weights: nothing is downloaded."""

from typing import Any

import torch
from transformers import InternVLConfig, InternVLForConditionalGeneration

from ..testing.families import FAMILIES, Scale
from ..tiny import WEIGHTS

IMAGE_TOKEN = 5

INTERNVIT_300M: dict[str, Any] = dict(
    hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096, attention_bias=True
)
SMALL_VIT: dict[str, Any] = dict(
    hidden_size=384, num_hidden_layers=12, num_attention_heads=6, intermediate_size=1536, attention_bias=True
)
QWEN2_SMALL: dict[str, Any] = dict(
    model_type="qwen2", hidden_size=768, num_hidden_layers=12, num_attention_heads=12, num_key_value_heads=4,
    intermediate_size=2048, vocab_size=4096, tie_word_embeddings=True,
)  # fmt: skip
QWEN2_0_5B: dict[str, Any] = dict(
    model_type="qwen2", hidden_size=896, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2,
    intermediate_size=4864, vocab_size=151674, tie_word_embeddings=False,
)  # fmt: skip
INTERNLM2_1_8B: dict[str, Any] = dict(
    model_type="llama", hidden_size=2048, num_hidden_layers=24, num_attention_heads=16, num_key_value_heads=8,
    intermediate_size=8192, vocab_size=92553, tie_word_embeddings=False,
)  # fmt: skip
INTERNLM2_5_7B: dict[str, Any] = dict(
    model_type="llama", hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
    intermediate_size=14336, vocab_size=92553, tie_word_embeddings=False,
)  # fmt: skip
"""InternLM2 is a Llama whose queries, keys and values lie in one weight: the same shapes, the same work."""


def _tiles_of_448(vision: dict[str, Any], text: dict[str, Any]) -> InternVLConfig:
    """448 px tiles of 256 visual tokens each."""
    common = dict(max_position_embeddings=32768, bos_token_id=None, eos_token_id=0, pad_token_id=0)
    tied = text["tie_word_embeddings"]
    return InternVLConfig(vision_config=vision, text_config=text | common, image_token_id=IMAGE_TOKEN, tie_word_embeddings=tied)


PRESETS = {
    "tiny": lambda: InternVLConfig.from_pretrained(WEIGHTS),
    "100m": lambda: _tiles_of_448(SMALL_VIT, QWEN2_SMALL),
    "internvl2-1b": lambda: _tiles_of_448(INTERNVIT_300M, QWEN2_0_5B),
    "internvl2-2b": lambda: _tiles_of_448(INTERNVIT_300M, INTERNLM2_1_8B),
    "internvl2-8b": lambda: _tiles_of_448(INTERNVIT_300M, INTERNLM2_5_7B),
}
"""Configurations by name. "tiny" has the shape of the embedded model: 112 px tiles of 16 visual tokens."""
FAMILY_TEXT: dict[str, Any] = dict(
    hidden_size=768, num_hidden_layers=12, num_attention_heads=12, num_key_value_heads=4, head_dim=64, intermediate_size=2048,
)  # fmt: skip
FAMILY_SCALE = Scale(hidden=384, layers=12, heads=6, mlp=1536, text=FAMILY_TEXT, real=True)
FAMILY_PRESETS = {f"{name}-100m": family for name, family in FAMILIES.items()}
"""Every family at about 100 M parameters, with the tiles, patches and windows of its published checkpoints."""


def names() -> str:
    """All presets."""
    return ", ".join([*PRESETS, *FAMILY_PRESETS])


def build(preset: str, dtype: torch.dtype, device: torch.device) -> Any:
    """A model of a preset's shape, its weights drawn on `device` itself.

    Raises:
        ValueError: there is no such preset.
    """
    torch.manual_seed(0)
    with device:
        if preset in PRESETS:
            return InternVLForConditionalGeneration._from_config(PRESETS[preset](), dtype=dtype).eval()
        if preset in FAMILY_PRESETS:
            return FAMILY_PRESETS[preset].build(FAMILY_SCALE, dtype)
    raise ValueError(f"--preset must be one of {names()}, got {preset!r}. Choose one of these.")
