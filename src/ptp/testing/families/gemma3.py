"""Gemma 3, small and of real size."""

from typing import Any

from transformers import Gemma3Config, Gemma3ForConditionalGeneration, PreTrainedTokenizerFast, SiglipVisionConfig
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.gemma3.processing_gemma3 import Gemma3Processor

from ..family import Family, Scale, token_id, tokenizer

MARKERS = ("<start_of_image>", "<end_of_image>", "<image_soft_token>")


def config(scale: Scale) -> Any:
    """SigLIP without [CLS]; a language model whose layers mostly attend in sliding windows."""
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


def processor(scale: Scale) -> Any:
    """One tile a picture; its tokenizer knows which of its tokens stand around a picture."""
    side, tokens = (896, 256) if scale.real else (112, 16)
    names = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    special = {"eos_token": tokenizer().eos_token, "pad_token": tokenizer().pad_token, "padding_side": "left"}
    own = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer().backend_tokenizer, extra_special_tokens=names,
        chat_template=tokenizer().chat_template, **special,
    )  # fmt: skip
    pictures = Gemma3ImageProcessorPil(size={"height": side, "width": side})
    return Gemma3Processor(pictures, own, image_seq_length=tokens)


GEMMA3 = Family("gemma3", "<start_of_image>", Gemma3ForConditionalGeneration, config, processor, MARKERS, nested=True)
