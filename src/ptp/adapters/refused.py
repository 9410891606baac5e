"""Model types that are refused by name, each with the reason: `check_model_type` raises it, `ptp models` shows it."""

_QUERIES = "its visual tokens are learned queries that each look at the whole picture: none stands for a place in it ({})"
_CROSS = "its language model looks at pictures by cross-attention: there are no visual tokens in its sequence to drop"
_ENCODERLESS = "it has no vision encoder, hence no attention of patches that saliency could be read from ({})"
_CODEBOOK = "its pictures become words of a codebook: there is no vision transformer whose attention could be read as saliency"

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
    "granite4_vision": (
        "its visual tokens enter the language model empty, and features are added to them before layers far up, so that what a "
        "token shows is not known where tokens leave; adding to a shortened sequence is not built"
    ),
    "minicpmv4_6": (
        "the first of its two mergers of 2 x 2 patches stands between layers of its encoder, so that earlier layers have "
        "four patches for one of the later ones; reading saliency there is not built"
    ),
    "llama4": (
        "its layers without rotary positions scale queries by how many tokens stand before them "
        "(attn_temperature_tuning), counted in the sequence that is left, so that pruning would change the scale"
    ),
}
"""Reasons by `config.model_type`; a registered adapter for one of them is asked first."""
