"""Gemma 4, small and of real size."""

from typing import Any

from transformers import Gemma4Config, Gemma4ForConditionalGeneration, PreTrainedTokenizerFast
from transformers.models.gemma4.feature_extraction_gemma4 import Gemma4AudioFeatureExtractor
from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil
from transformers.models.gemma4.processing_gemma4 import Gemma4Processor

from ...loader import pictures_only
from ..family import Family, Scale, token_id, tokenizer

MARKERS = ("<|image>", "<|image|>", "<image|>", "<|video|>", "<|audio|>")


def config(scale: Scale) -> Any:
    """Windows and, every so often, a layer that sees all, with wider heads that share keys; the last half of the layers look at
    keys and values of earlier ones; every layer is given something of each token (per-layer inputs)."""
    patch, factor, window, every = (16, 3, 512, 6) if scale.real else (16, 2, 24, 2)
    depth, width = scale.text["num_hidden_layers"], scale.text["head_dim"]
    kinds = ["full_attention" if n % every == every - 1 else "sliding_attention" for n in range(depth)]
    text = scale.language(
        "gemma4_text", sliding_window=window, layer_types=kinds, global_head_dim=2 * width, num_global_key_value_heads=1,
        hidden_size_per_layer_input=64, vocab_size_per_layer_input=scale.language("")["vocab_size"],
        num_kv_shared_layers=depth // 2, attention_k_eq_v=True, use_bidirectional_attention="vision",
    )  # fmt: skip
    vision = scale.vision() | dict(
        patch_size=patch, pooling_kernel_size=factor, head_dim=scale.hidden // scale.heads, num_key_value_heads=scale.heads,
        position_embedding_size=2048 if scale.real else 256,
    )  # fmt: skip
    ids: dict[str, Any] = {f"{name}_id": token_id(marker) for name, marker in zip(NAMES, MARKERS, strict=True)}
    return Gemma4Config(text_config=text, vision_config=vision, audio_config=None, tie_word_embeddings=False, **ids)


NAMES = ("boi_token", "image_token", "eoi_token", "video_token", "audio_token")


def processor(scale: Scale) -> Any:
    """Up to 560 tokens a picture, twice what checkpoints start with; small: 70."""
    patch, factor, tokens = (16, 3, 560) if scale.real else (16, 2, 70)
    names = dict(zip(NAMES, MARKERS, strict=True)) | {"boa_token": "<|audio|>", "eoa_token": "<|audio|>"}
    special = {"eos_token": tokenizer().eos_token, "pad_token": tokenizer().pad_token, "padding_side": "left"}
    own = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer().backend_tokenizer, extra_special_tokens=names,
        chat_template=tokenizer().chat_template, **special,
    )  # fmt: skip
    pictures = Gemma4ImageProcessorPil(patch_size=patch, pooling_kernel_size=factor, max_soft_tokens=tokens)
    return pictures_only(Gemma4Processor)(Gemma4AudioFeatureExtractor(), pictures, own, None, image_seq_length=tokens)


GEMMA4 = Family("gemma4", "<|image|>", Gemma4ForConditionalGeneration, config, processor, MARKERS, nested=True)
