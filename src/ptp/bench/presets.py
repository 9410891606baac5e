"""Models of real shapes with random weights: nothing is downloaded."""

import torch
from transformers import InternVLConfig, InternVLForConditionalGeneration

IMAGE_TOKEN = 5


def build_100m(dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> InternVLForConditionalGeneration:
    """An InternVL of about 100 M parameters: 448 px tiles of 256 visual tokens, 12 language-model layers."""
    config = InternVLConfig(
        vision_config=dict(
            hidden_size=384, num_hidden_layers=12, num_attention_heads=6, intermediate_size=1536, attention_bias=True
        ),
        text_config=dict(
            model_type="qwen2", hidden_size=768, num_hidden_layers=12, num_attention_heads=12, num_key_value_heads=4,
            intermediate_size=2048, vocab_size=4096, max_position_embeddings=32768, tie_word_embeddings=True,
            bos_token_id=None, eos_token_id=0, pad_token_id=0,
        ),
        image_token_id=IMAGE_TOKEN,
        tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model: torch.nn.Module = InternVLForConditionalGeneration(config).eval()
    return model.to(device, dtype)  # type: ignore[return-value]


PRESETS = {"100m": build_100m}
