"""The configuration: what the authors call each setting, and what transformers does."""

from typing import Any

from transformers import InternVLConfig

TEXT_MODELS = {
    "InternLM2ForCausalLM": "llama",
    "LlamaForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Phi3ForCausalLM": "phi3",
}
"""Architecture of the language model -> its model_type in transformers. InternLM2 is a Llama with one fused projection."""
TEXT_SETTINGS = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size",
    "max_position_embeddings", "rms_norm_eps", "hidden_act", "rope_theta", "original_max_position_embeddings",
    "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id", "partial_rotary_factor",
)  # fmt: skip


def architecture(original: dict[str, Any]) -> str:
    """The class of the language model.

    Raises:
        ValueError: it is not one of `TEXT_MODELS`.
    """
    (name,) = original.get("llm_config", {}).get("architectures") or [None]
    if name not in TEXT_MODELS:
        raise ValueError(f"The language model must be one of {', '.join(TEXT_MODELS)}, got {name!r}. Others are not known.")
    return name


def convert_config(original: dict[str, Any], image_token_id: int, tile_tokens: int) -> InternVLConfig:
    """The configuration in transformers' words.

    Raises:
        ValueError: a setting has a value that transformers' model cannot have.
    """
    _expect(original, "ps_version", "v2")
    vision, side = original["vision_config"], original.get("force_image_size")
    _expect(vision, "qk_normalization", False, True)
    _expect(vision, "norm_type", "layer_norm", "rms_norm")
    select = original.get("select_layer", -1)
    return InternVLConfig(
        vision_config=dict(
            hidden_size=vision["hidden_size"],
            num_hidden_layers=vision["num_hidden_layers"],
            num_attention_heads=vision["num_attention_heads"],
            intermediate_size=vision["intermediate_size"],
            attention_bias=vision.get("qkv_bias", True),
            use_qk_norm=vision.get("qk_normalization", False),
            hidden_act=vision.get("hidden_act", "gelu"),
            norm_type=vision.get("norm_type", "layer_norm"),
            layer_norm_eps=vision.get("layer_norm_eps", 1e-6),
            image_size=[side or vision["image_size"]] * 2,
            patch_size=[vision["patch_size"]] * 2,
            num_channels=vision.get("num_channels", 3),
        ),
        text_config=_text_config(original),
        image_token_id=image_token_id,
        image_seq_length=tile_tokens,
        downsample_ratio=original.get("downsample_ratio", 0.5),
        vision_feature_layer=select,
        vision_feature_select_strategy="default",
        tie_word_embeddings=bool(original["llm_config"].get("tie_word_embeddings", False)),
        dtype=original.get("torch_dtype"),
    )


def generation_settings(original: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
    """Where an answer ends: at the end of the text, and at the end of the turn."""
    ends = {original["llm_config"].get("eos_token_id"), tokenizer.eos_token_id}
    ends |= {tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|end|>") if token in tokenizer.get_vocab()}
    return {"eos_token_id": sorted(end for end in ends if isinstance(end, int)), "pad_token_id": tokenizer.pad_token_id}


def _text_config(original: dict[str, Any]) -> dict[str, Any]:
    text, kind = original["llm_config"], TEXT_MODELS[architecture(original)]
    settings = {name: text[name] for name in TEXT_SETTINGS if text.get(name) is not None}
    if kind == "llama":
        _expect(text, "bias", False)
        _expect(text, "attention_bias", False)
        settings |= {"attention_bias": False, "mlp_bias": False}
    if text.get("rope_scaling"):
        scaling = dict(text["rope_scaling"])
        kinds = {"su": "longrope"}
        name = scaling.pop("type", None) or scaling.pop("rope_type", "default")
        settings["rope_scaling"] = scaling | {"rope_type": kinds.get(name, name)}
    window, length = text.get("sliding_window"), text.get("max_position_embeddings", 0)
    if kind == "phi3":
        settings["sliding_window"] = None if window is None or window >= length else window
    if kind == "qwen2" and text.get("use_sliding_window"):
        settings |= {name: text[name] for name in ("use_sliding_window", "sliding_window", "max_window_layers")}
    return settings | {"model_type": kind}


def _expect(settings: dict[str, Any], name: str, *values: Any) -> None:
    if settings.get(name, values[0]) not in values:
        known = " or ".join(map(repr, values))
        raise ValueError(f"{name} must be {known}, got {settings[name]!r}. transformers' InternVL has no other.")
