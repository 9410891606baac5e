"""What of the engine's configuration has to be changed, or rules pruning out."""

from typing import Any

from .settings import KEY

REFUSED = "ptp_refused"
"""Attribute of a model's configuration: why the engine, as it is set up, cannot prune."""
DRAFTS_BY_TEXT = ("ngram", "ngram_gpu", "suffix")
"""Speculative decoding that looks at ids only."""


def prepare_config(architecture: str, sharded: bool) -> None:
    """Put our look at the configuration behind vLLM's own for an architecture. Called again it does nothing.

    Args:
        sharded: Whether tensor parallelism would share out its encoder's heads.
    """
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig

    own = MODELS_CONFIG_MAP.get(architecture, VerifyAndUpdateConfig)
    if getattr(own, "ptp", False):
        return

    class PreparedConfig(own):  # type: ignore[misc, valid-type]
        ptp = True

        @staticmethod
        def verify_and_update_model_config(model_config: Any) -> None:
            own.verify_and_update_model_config(model_config)
            ask_for_positions(model_config.hf_config)

        @staticmethod
        def verify_and_update_config(vllm_config: Any) -> None:
            own.verify_and_update_config(vllm_config)
            setattr(vllm_config.model_config.hf_config, REFUSED, refusal(vllm_config, sharded))

    MODELS_CONFIG_MAP[architecture] = PreparedConfig


def refuse_elsewhere(architecture: str, served: str) -> None:
    """Have an engine of another architecture stop where it is asked to prune: vLLM would pass our settings by without a word.

    Args:
        served: The architectures that are pruned.
    """
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig

    own = MODELS_CONFIG_MAP.get(architecture, VerifyAndUpdateConfig)
    if getattr(own, "ptp", False):
        return

    class RefusingConfig(own):  # type: ignore[misc, valid-type]
        ptp = True

        @staticmethod
        def verify_and_update_config(vllm_config: Any) -> None:
            pictures = getattr(vllm_config.model_config, "multimodal_config", None)
            if KEY in (getattr(pictures, "mm_processor_kwargs", None) or {}):
                raise ValueError(f"{architecture} cannot be pruned in vLLM, only {served}. Leave out {KEY!r}.")
            own.verify_and_update_config(vllm_config)

    MODELS_CONFIG_MAP[architecture] = RefusingConfig


def ask_for_positions(hf_config: Any) -> None:
    """Have the engine ask the model for the positions of a prompt, as it does where pictures have rows and columns.

    That is what a section of M-RoPE beside (not in) the text model's configuration does: its rotary positions stay what they
    are, and the model looks at one row of three.
    """
    from vllm.transformers_utils.config import uses_mrope

    if not uses_mrope(hf_config):
        hf_config.mrope_section = [0, 0, 0]


def refusal(vllm_config: Any, sharded: bool = False) -> str | None:
    """Why an engine with this configuration cannot prune; None where it can."""
    parallel, guessing = vllm_config.parallel_config, vllm_config.speculative_config
    if parallel.pipeline_parallel_size > 1:
        return (
            f"pipeline_parallel_size={parallel.pipeline_parallel_size}: only the first stage learns the positions of the "
            "tokens that stay. Use tensor parallelism."
        )
    if sharded and parallel.tensor_parallel_size > 1:
        return (
            f"tensor_parallel_size={parallel.tensor_parallel_size}: each device has some heads of this model's encoder, and "
            "scores are means over all. Serve it on one device."
        )
    compiled, pictures = vllm_config.compilation_config, vllm_config.model_config.multimodal_config
    for name, value in (
        ("cudagraph_mm_encoder", getattr(compiled, "cudagraph_mm_encoder", False)),
        ("compile_mm_encoder", getattr(compiled, "compile_mm_encoder", False)),
        ("video_pruning_rate", getattr(pictures, "video_pruning_rate", None)),
    ):
        if value:
            return f"{name}={value}: the encoder could not be listened to, or its output is another. Leave it off."
    if guessing is not None and guessing.method not in DRAFTS_BY_TEXT:
        return (
            f"speculative decoding by {guessing.method!r}: the drafter would be given tokens of another length and place. "
            'Use "ngram", or none.'
        )
    return None
