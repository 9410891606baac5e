"""KV caches: which can be pruned, shortening them, and decoding from a shortened one."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from ..errors import UnsupportedModelError
from .compaction import take

RECORD = "ptp_record"
"""Attribute of a pruned cache that carries its `Record`, so that copies of it can be decoded from."""


class UnsupportedCacheError(UnsupportedModelError):
    """The KV cache cannot be pruned exactly, or not any more."""


@dataclass(frozen=True)
class Record:
    """What decoding from a pruned cache needs to know.

    `length` tokens were prefilled; `valid` (B, S') marks the slots that hold one, `padded` says whether any does not;
    the next token of a row has position `position` (B, 1).
    """

    length: int
    valid: Tensor
    padded: bool
    position: Tensor


def check_cache(cache: Any, record: Record | None) -> None:
    """Raise UnsupportedCacheError unless a prompt with pictures can be prefilled into `cache`."""
    if cache is None:
        return
    if record is not None or cache.get_seq_length() > 0:
        raise UnsupportedCacheError(
            "A prompt with pictures needs an empty KV cache, and this one is filled. Start it with a fresh cache."
        )
    if getattr(cache, "offloading", False) or any(type(layer) is not DynamicLayer for layer in cache.layers):
        kinds = sorted({type(layer).__name__ for layer in cache.layers})
        raise UnsupportedCacheError(
            f"Visual tokens can be pruned with DynamicCache only, got {type(cache).__name__} ({', '.join(kinds)}): other "
            "caches fix their length or forget tokens. Drop cache_implementation / past_key_values, or turn off offloading."
        )


def continue_from(record: Record, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Mask and positions for tokens that follow a pruned prefill: it is shorter than the positions it holds.

    Raises:
        UnsupportedCacheError: mask or positions and cache disagree on how many tokens are new, as when a second prompt is
            prepared as if nothing had been pruned.
    """
    cache, states = kwargs["past_key_values"], kwargs["inputs_embeds"]
    new = states.shape[1]
    decoded = cache.get_seq_length() - record.valid.shape[1]
    mask, positions = kwargs.get("attention_mask"), kwargs.get("position_ids")
    expected = record.position + decoded + torch.arange(new, device=states.device)
    fits = mask is None or (isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[1] == record.length + decoded + new)
    if fits and new > 1 and positions is not None:  # one token cannot be cut out wrongly: spare decoding the wait
        fits = bool((positions == expected).all())
    if not fits:
        raise UnsupportedCacheError(
            "This KV cache was pruned, and the prompt does not continue it token by token: a second prompt on a pruned "
            "cache is not supported by generate. Start with a fresh cache, or feed the new tokens to model(...) itself."
        )
    changed: dict[str, Any] = {"position_ids": expected if positions is None else positions}
    if mask is not None or record.padded:
        tail = record.valid.new_ones(len(record.valid), decoded + new) if mask is None else mask[:, record.length :].bool()
        changed["attention_mask"] = torch.cat([record.valid, tail], dim=1).long()
    return changed


def compact_cache(cache: Cache, layers: int, index: Tensor) -> None:
    """Shorten the first `layers` layers of a cache to `index` (B, S'), in place."""
    below: list[Any] = cache.layers[:layers]
    for layer in below:
        layer.keys = take(layer.keys, index, dim=2)
        layer.values = take(layer.values, index, dim=2)


def cache_bytes(cache: Cache | None) -> int:
    """Bytes that the keys and values of a cache occupy."""
    layers: list[Any] = cache.layers if cache is not None else []
    tensors = [tensor for layer in layers for tensor in (layer.keys, layer.values) if tensor is not None]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
