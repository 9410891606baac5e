"""The tokenizer that made a model's prompts."""

import os
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from transformers import AutoTokenizer, PreTrainedModel


def find_tokenizer(model: PreTrainedModel, processor: Any | None) -> Any | None:
    """That of `processor`, which may be a tokenizer itself; without one, the one saved next to the weights. None: neither.

    Raises:
        ValueError: `processor` is neither.
    """
    if processor is None:
        return _saved(model.name_or_path) if model.name_or_path else None
    tokenizer = getattr(processor, "tokenizer", processor)
    if not hasattr(tokenizer, "decode"):
        raise ValueError(
            f"processor must be the model's processor or tokenizer, got {type(processor).__name__}. Pass what ptp.load or "
            "AutoProcessor returns."
        )
    return tokenizer


@lru_cache(maxsize=8)
def _saved(name: str) -> Any | None:
    try:  # never a download: attaching to a model must not wait for a network
        return AutoTokenizer.from_pretrained(os.fspath(name), local_files_only=True)
    except (OSError, ValueError):
        return None


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
