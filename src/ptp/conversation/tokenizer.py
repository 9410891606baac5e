"""The tokenizer and the chat templates that made a model's prompts."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from transformers import AutoTokenizer, PreTrainedModel
from transformers.processing_utils import ProcessorMixin


@dataclass(frozen=True)
class _Saved:
    """What lies beside a model's weights, as a processor would have it."""

    tokenizer: Any
    chat_template: Any


def find_processor(model: PreTrainedModel, processor: Any | None) -> Any | None:
    """`processor`, or a tokenizer; without one, what is saved next to the weights. None: neither.

    Raises:
        ValueError: `processor` is neither a processor nor a tokenizer.
    """
    if processor is None:
        return _saved(os.fspath(model.name_or_path)) if model.name_or_path else None
    if not hasattr(getattr(processor, "tokenizer", processor), "decode"):
        raise ValueError(
            f"processor must be the model's processor or tokenizer, got {type(processor).__name__}. Pass what ptp.load or "
            "AutoProcessor returns."
        )
    return processor


def find_tokenizer(model: PreTrainedModel, processor: Any | None) -> Any | None:
    """That of `processor`, which may be a tokenizer itself; without one, the one saved next to the weights. None: neither.

    Raises:
        ValueError: `processor` is neither.
    """
    found = find_processor(model, processor)
    return getattr(found, "tokenizer", found)


def chat_templates(processor: Any) -> list[str]:
    """The templates (Jinja) that may have made a prompt: the processor's, then its tokenizer's; of named ones the default."""
    found = []
    for owner in (processor, getattr(processor, "tokenizer", None)):
        template = getattr(owner, "chat_template", None)
        if isinstance(template, dict):
            template = template.get("default") or next(iter(template.values()), None)
        if isinstance(template, str) and template and template not in found:
            found.append(template)
    return found


@lru_cache(maxsize=8)
def _saved(name: str) -> _Saved | None:
    try:  # never a download: attaching to a model must not wait for a network
        tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=True)
    except (OSError, ValueError):
        return None
    try:  # the settings alone: to build a processor may need what is not installed
        settings, _ = ProcessorMixin.get_processor_dict(name, local_files_only=True)
    except (OSError, ValueError):
        settings = {}
    return _Saved(tokenizer, settings.get("chat_template"))


def reader(model: PreTrainedModel, processor: Any | None) -> Callable[[list[int]], str]:
    """A function from ids to their text, empty where no tokenizer is known. A saved one is loaded when text is first read.

    Raises:
        ValueError: `processor` is neither a processor nor a tokenizer.
    """
    given = None if processor is None else find_tokenizer(model, processor)

    def read(ids: list[int]) -> str:
        tokenizer = find_tokenizer(model, None) if given is None else given
        return tokenizer.decode(ids) if tokenizer is not None else ""

    return read
