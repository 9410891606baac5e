"""Every model family, small: how the tests ask its questions and prune it."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import DynamicCache

from ptp.adapters import adapter_for
from ptp.methods import METHODS
from ptp.pruner import Pruner
from ptp.runtime import Trace
from ptp.testing import FAMILIES, SIZES, SMALL, Family, small_model, small_processor, token_id, tokenizer
from ptp.testing import photo as drawn

__all__ = ["FAMILIES", "SIZES", "SMALL", "Family", "photo", "token_id", "tokenizer"]

QUESTION = "What is on the red circle?"
WINDOW = 56
"""Side in pixels of the regions of a picture that is not cut into tiles."""


_inputs: dict[Any, tuple[Any, dict[str, Tensor]]] = {}


@cache
def photo(number: int, size: tuple[int, int]) -> Image.Image:
    """The same object for the same picture, so that `encode` knows it again."""
    return drawn(number, size)


def processor_of(family: Family) -> Any:
    return small_processor(family)


def model_of(family: Family, attention: str = "sdpa", wider: bool = False) -> Any:
    return small_model(family, attention, wider)


def encode(family: Family, *prompts: tuple[list[Image.Image], str]) -> dict[str, Tensor]:
    """Model inputs of a left-padded batch of (pictures, question), made once of the same pictures."""
    key = family, tuple((tuple(map(id, pictures)), question) for pictures, question in prompts)
    if key not in _inputs:  # the pictures are kept, so that no other object gets their id
        _inputs[key] = prompts, family.encode(small_processor(family), prompts)
    return {name: value.clone() for name, value in _inputs[key][1].items()}


def picture(number: int = 0) -> Image.Image:
    return photo(number, SIZES[number])


def pruner(name: str = "pyramid", **settings: Any) -> Pruner:
    """A method, "pyramid"; or at another layer than its own, "pyramid at 2"."""
    name, _, layer = name.partition(" at ")
    at = {"prune_layer": int(layer)} if layer else {}
    return METHODS[name](**{"keep_ratio": 0.3, "window": WINDOW, **at, **settings})


def prune(model: Any, inputs: dict[str, Tensor], method: Pruner, **call: Any) -> tuple[Any, Trace]:
    """The output of a prefill and its trace."""
    with torch.no_grad(), method(model, tokenizer()) as trace:
        return model(**inputs, **call), trace


def fresh_cache(model: Any) -> DynamicCache:
    """An empty cache; one that knows the layers, where not all of them attend."""
    return DynamicCache(config=model.config) if adapter_for(model).text.hybrid else DynamicCache()


def map_below(model: Any, layer: int, maps: Sequence[Tensor]) -> Tensor:
    """(S, S) head-mean attention of one row, of the nearest layer below `layer` that attends; of the first layer for 0.

    Args:
        maps: Of the layers that attend.
    """
    kinds = getattr(model.config.text_config, "layer_types", None) or ["full_attention"] * len(maps)
    below = sum("attention" in kind and "linear" not in kind for kind in kinds[:layer])
    assert below or layer == 0
    return maps[max(below - 1, 0)][0].mean(dim=0)


def places_of(words: str, ids: Tensor) -> list[int]:
    """Where in a row of ids (S,) some words stand, by trying every stretch of it."""
    for start in range(len(ids)):
        for end in range(start + 1, min(start + 2 * len(words), len(ids)) + 1):
            if tokenizer().decode(ids[start:end]) == words:
                return list(range(start, end))
    raise AssertionError(f"{words!r} is not in the prompt")
