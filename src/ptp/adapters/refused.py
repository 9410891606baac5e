"""Model types that are refused by name, each with the reason: `check_model_type` raises it, `ptp models` shows it."""

_QUERIES = "its visual tokens are learned queries that each look at the whole picture: none stands for a place in it ({})"
_CROSS = "its language model looks at pictures by cross-attention: there are no visual tokens in its sequence to drop"
_ENCODERLESS = "it has no vision encoder, hence no attention of patches that saliency could be read from ({})"
_CODEBOOK = "its pictures become words of a codebook: there is no vision transformer whose attention could be read as saliency"
_UNBUILT = "not built yet ({})"

REFUSED: dict[str, str] = {
    "blip-2": _QUERIES.format("a Q-Former"),
    "instructblip": _QUERIES.format("a Q-Former"),
    "instructblipvideo": _QUERIES.format("a Q-Former"),
    "idefics2": _QUERIES.format("a perceiver resampler"),
    "kosmos-2": _QUERIES.format("latent queries"),
    "kosmos-2.5": _QUERIES.format("latent queries"),
    "aria": _QUERIES.format("a cross-attention projector"),
    "mllama": _CROSS,
    "idefics": _CROSS,
    "pix2struct": _CROSS,
    "florence2": "its language model is an encoder, which sees both ways, and a decoder: no cache is prefilled with pictures",
    "fuyu": _ENCODERLESS.format("patches of pixels go straight into the language model"),
    "gemma4_unified": _ENCODERLESS.format("patches of pixels go straight into the language model"),
    "chameleon": _CODEBOOK,
    "emu3": _CODEBOOK,
    "gemma3n": "its vision encoder is timm's MobileNet, in which no layer attends over patches as saliency is read",
    "granite4_vision": _UNBUILT.format("Q-Formers in windows of the picture fill its visual tokens at several layers"),
    "kimi_k25": _UNBUILT.format("its caches hold latents (deepseek_v3), and its processor needs torchvision"),
    "llama4": _UNBUILT.format(
        "its layers without rotary positions scale queries by their positions, counted in the shortened sequence"
    ),
    "cohere2_vision": _UNBUILT.format("it has sliding windows, and its processor needs torchvision"),
}
"""Reasons by `config.model_type`; a registered adapter for one of them is asked first."""
