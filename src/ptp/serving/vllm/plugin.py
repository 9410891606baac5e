"""What vLLM calls when it starts, in each of its processes."""

import warnings

TESTED = "0.32"
"""The minor version that the plugin was tested with."""
FAMILIES = {
    "InternVLForConditionalGeneration": "internvl:PrunedInternVL",
    "LlavaOnevisionForConditionalGeneration": "llava_onevision:PrunedLlavaOnevision",
    "Qwen2_5_VLForConditionalGeneration": "qwen_vl:PrunedQwen25VL",
    "Qwen3VLForConditionalGeneration": "qwen_vl:PrunedQwen3VL",
}
"""Architectures, and the class under `families` that takes the place of vLLM's own."""
SHARDED = tuple(architecture for architecture in FAMILIES if not architecture.startswith("InternVL"))
"""Those whose encoder's heads are shared out among devices: none of them could say what all attend to."""


def register() -> None:
    """Let models of the families be built from our classes, which are vLLM's own and prune where they are asked to."""
    import vllm
    from vllm import ModelRegistry

    from .config import prepare_config, refuse_elsewhere

    check_version(vllm.__version__)
    for architecture, where in FAMILIES.items():
        ModelRegistry.register_model(architecture, f"{__package__}.families.{where}")
        prepare_config(architecture, architecture in SHARDED)

    for architecture in set(ModelRegistry.get_supported_archs()) - set(FAMILIES):
        refuse_elsewhere(architecture, ", ".join(FAMILIES))


def check_version(version: str) -> None:
    """Warn where vLLM is of another minor version than the one tested."""
    if version != "dev" and version.split(".")[:2] != TESTED.split("."):
        warnings.warn(
            f"The ptp plugin was tested with vLLM {TESTED}, and this is {version}: pruned answers may be wrong there. Install "
            f"'vllm=={TESTED}.*', or set VLLM_PLUGINS='' to serve without pruning.",
            stacklevel=2,
        )
