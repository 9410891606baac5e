"""Model families. `adapter_for` finds the one that fits a model."""

from collections.abc import Callable

from transformers import PreTrainedModel

from ..errors import UnsupportedModelError
from .base import Adapter, Layout, Modality, QueryKey, Span, Tile
from .gemma3 import Gemma3Adapter
from .gemma4 import Gemma4Adapter
from .glm4v import Glm4vAdapter
from .internvl import InternVLAdapter
from .lfm2_vl import Lfm2VlAdapter
from .llava import LlavaAdapter
from .llava15 import Llava15Adapter
from .minicpmv4_6 import MiniCPMV46Adapter
from .ovis2 import Ovis2Adapter
from .paddleocr_vl import PaddleOCRVLAdapter
from .pixtral import PixtralAdapter
from .qwen3_5 import Qwen35Adapter
from .qwen_vl import QwenVLAdapter
from .refused import REFUSED
from .smolvlm import SmolVLMAdapter
from .text_check import check_rows

ADAPTERS: list[type[Adapter]] = [
    InternVLAdapter,
    LlavaAdapter,
    SmolVLMAdapter,
    QwenVLAdapter,
    Gemma3Adapter,
    Ovis2Adapter,
    Glm4vAdapter,
    PaddleOCRVLAdapter,
    Qwen35Adapter,
    Llava15Adapter,
    PixtralAdapter,
    Gemma4Adapter,
    Lfm2VlAdapter,
    MiniCPMV46Adapter,
]
"""Families, in the order they are listed."""

__all__ = [
    "ADAPTERS",
    "REFUSED",
    "Adapter",
    "Layout",
    "Modality",
    "QueryKey",
    "Span",
    "Tile",
    "adapter_for",
    "check_model_type",
    "register",
]


def register(adapter: type[Adapter]) -> type[Adapter]:
    """Take a family of your own; of two that take a model type, the one registered last is asked. Usable as a decorator."""
    ADAPTERS.insert(0, adapter)
    return adapter


def check_model_type(model_type: str | None) -> type[Adapter]:
    """The adapter of a `config.model_type`.

    Raises:
        UnsupportedModelError: no adapter takes it; the message lists those that exist, and says why where it is one of
            `REFUSED`.
    """
    for adapter in ADAPTERS:
        if model_type in adapter.model_types:
            return adapter
    families = ", ".join(f"{a.family} (model_type {', '.join(a.model_types)})" for a in ADAPTERS)
    reason = f": {REFUSED[model_type]}" if model_type in REFUSED else ""
    raise UnsupportedModelError(
        f"Model type {model_type!r} is not supported{reason}. Families that work: {families}, in the Hugging Face format. "
        "docs/add_a_model.md tells how to add one."
    )


def adapter_for(model: PreTrainedModel, read: Callable[[list[int]], str] = lambda ids: "") -> Adapter:
    """Look at a model the way its family wants.

    Args:
        read: Gives the text of ids; empty where the tokenizer is not known.

    Raises:
        UnsupportedModelError: the family, or this variant of it, cannot be pruned exactly.
    """
    config = getattr(model, "config", None)
    family = check_model_type(getattr(config, "model_type", None))
    if not hasattr(getattr(model, "model", None), "get_image_features"):
        raise UnsupportedModelError(
            f"A model is pruned as a whole, with its language-model head, got {type(model).__name__}. Pass the "
            "...ForConditionalGeneration that generate is called on, not its .model."
        )
    adapter = family(model)
    check_rows(adapter.text, adapter.family)
    adapter.read = read
    return adapter
