"""KV caches: which can be pruned, shortening them, and going on from a shortened one."""

import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, cache_utils
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionLayer

from ..errors import UnsupportedModelError
from .gather import take

HOLDS_NOTHING: Any = getattr(cache_utils, "DummyLayer", None)
"""Stands for a layer that looks at the keys and values of an earlier one; older releases have none."""


class UnsupportedCacheError(UnsupportedModelError):
    """The KV cache cannot be pruned exactly, or not any more."""


class GoingOn(threading.local):
    """Whether the forward pass of this thread goes on from a pruned cache with the mask that `continue_from` makes."""

    now: bool = False


going_on = GoingOn()


@dataclass(frozen=True)
class Record:
    """What a pruned cache needs to know of its first slots. Behind them no token has left.

    Attributes:
        valid: (B, S') bool marks the slots that hold a token; rows are aligned at their ends.
        padded: Whether any does not.
        removed: Tokens of each row, padding among them, that were seen and are not held.
        places: (B, S') where each slot's token was in the unpruned sequence.
        windowed: Whether the model has sliding windows.
    """

    valid: Tensor
    padded: bool
    removed: int
    places: Tensor
    windowed: bool = False

    @classmethod
    def of(cls, valid: Tensor, places: Tensor, seen: int, windowed: bool = False) -> "Record":
        """The record of a cache that has seen `seen` tokens.

        Args:
            valid: (B, held) of all its slots. places: (B, held).
        """
        slots = valid.shape[1]
        undisturbed = valid & (places == torch.arange(seen - slots, seen, device=places.device))
        last = slots - int(undisturbed.all(dim=0).flip(0).cumprod(0).sum())
        return cls(valid[:, :last], not bool(valid.all()), seen - slots, places[:, :last], windowed)

    def rows(self, index: Tensor) -> "Record":
        """That of a cache whose rows are these."""
        index = index.to(self.valid.device)
        return replace(self, valid=self.valid[index], places=self.places[index])


class PrunedLayer(DynamicLayer):
    """A layer that holds fewer tokens than it has seen.

    As transformers' sliding-window layers do, it counts what it has seen: positions, and what `generate` takes for new in
    a longer prompt, come out as if nothing had left.

    Attributes:
        record: Of the whole cache; None once it was reset.
    """

    record: Record | None = None

    @classmethod
    def of(cls, layer: CacheLayerMixin, record: Record) -> "PrunedLayer":
        """The keys and values of `layer`, of which tokens are missing."""
        pruned = cls()
        vars(pruned).update(vars(layer))
        pruned.record = record
        return pruned

    @property
    def removed(self) -> int:
        """Tokens that were seen and are not held."""
        return self.record.removed if self.record is not None else 0

    def get_seq_length(self) -> int:
        """Tokens seen."""
        held = super().get_seq_length()
        return held + self.removed if held else 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """How many keys there are for `query_length` new tokens, and the number of the first.

        Raises:
            UnsupportedCacheError: only the pruner knows which of them are padding or out of reach, and it is not there.
        """
        if self.record is not None and (self.record.padded or self.record.windowed) and not going_on.now:
            raise UnsupportedCacheError(
                "A pruned KV cache of a batch whose rows kept different numbers of tokens, or of a model with sliding windows, "
                "goes on only where the model is still pruned. Call the model inside the pruner's context."
            )
        return super().get_seq_length() + query_length, self.removed

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the newest tokens, -1 the last one, as assisted decoding does with those it rejects.

        Raises:
            UnsupportedCacheError: tokens were pruned among them, so that fewer are held than were seen.
        """
        newest = super().get_seq_length() - (self.record.valid.shape[1] if self.record is not None else 0)
        if abs(tokens_to_remove) > newest:
            raise UnsupportedCacheError(
                f"Of a pruned KV cache the tokens behind the last one that left can be cropped (here {newest}), got "
                f"{tokens_to_remove}. Go back to a copy of the cache, or prefill again."
            )
        super().crop(tokens_to_remove)

    def reset(self) -> None:
        """Forget everything; until transformers 5.19 layers kept their length, and zeros in it."""
        self.keys = self.values = None
        self.is_initialized = False
        super().reset()
        self.record = None

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row, so that several prompts can go on from one."""
        super().batch_repeat_interleave(repeats)
        if self.record is not None:
            self.record = self.record.rows(torch.arange(len(self.record.valid)).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows."""
        super().batch_select_indices(indices)
        if self.record is not None:
            self.record = self.record.rows(indices)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Put the rows into another order."""
        super().reorder_cache(beam_idx)
        if self.record is not None:
            self.record = self.record.rows(beam_idx)


def with_slots(layers: Sequence[Any]) -> list[Any]:
    """Those of a cache's layers that hold keys and values, one slot a token: what is pruned, measured and asked for the past.

    The others hold what a recurrence has made of all tokens, of one size whatever it has seen: none of that can be taken out
    again, and layers from the one on that prunes are not given what left. Or they hold nothing, and look at an earlier layer's.
    """
    return [layer for layer in layers if isinstance(layer, CacheLayerMixin)]


def record_of(cache: Cache | None) -> Record | None:
    """The record of a cache that was pruned."""
    layers = with_slots(cache.layers) if cache is not None else []
    return getattr(layers[0], "record", None) if layers else None


def held(cache: Cache | None) -> int:
    """Slots that a cache holds."""
    layers = with_slots(cache.layers) if cache is not None else []
    return layers[0].keys.shape[-2] if layers and layers[0].is_initialized else 0


def check_cache(cache: Any, windowed: bool = False) -> None:
    """Raise UnsupportedCacheError unless pictures can be pruned while they are prefilled into `cache`.

    Args:
        windowed: The model has sliding windows. Empty layers that would forget what is out of reach are made to keep it:
            after pruning they could not tell what is.
    """
    if cache is None:
        return
    if windowed:
        cache.layers = [
            DynamicLayer() if type(layer) is DynamicSlidingWindowLayer and not layer.is_initialized else layer
            for layer in cache.layers
        ]
    takes = (DynamicLayer, PrunedLayer, LinearAttentionLayer, HOLDS_NOTHING)
    if getattr(cache, "offloading", False) or any(type(layer) not in takes for layer in cache.layers):
        kinds = sorted({type(layer).__name__ for layer in cache.layers})
        raise UnsupportedCacheError(
            f"Visual tokens can be pruned with DynamicCache only, got {type(cache).__name__} ({', '.join(kinds)}): other "
            "caches fix their length or forget tokens. Drop cache_implementation / past_key_values, or turn off offloading."
        )


def continue_from(record: Record, cache: Any, mask: Any, new: int) -> Tensor | None:
    """The mask (B, seen + new) for `new` tokens that follow a pruned cache: what left is padding. None where none is needed.

    Args:
        mask: What the caller passed, None or (B, seen + new); padding among the new tokens counts.

    Raises:
        UnsupportedCacheError: it does not say which tokens are new.
    """
    seen, slots = cache.get_seq_length(), held(cache)
    if mask is not None and not (isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[1] == seen + new):
        raise UnsupportedCacheError(
            f"This KV cache was pruned after it had seen {seen} tokens, and attention_mask is not (batch, {seen + new}). Pass "
            "the whole conversation's mask, or none; to start afresh, use a fresh cache."
        )
    if mask is None and not record.padded:
        return None
    since = slots - record.valid.shape[1]  # slots behind the last token that left
    tail = record.valid.new_ones(len(record.valid), since + new) if mask is None else mask[:, seen - since :].bool()
    valid = torch.cat([record.valid, tail.to(record.valid.device)], dim=1).long()
    return torch.nn.functional.pad(valid, (record.removed, 0))


def held_places(record: Record | None, cache: Any, batch: int) -> Tensor:
    """(B, held) where each token that a cache holds was in the unpruned sequence."""
    seen, slots = cache.get_seq_length(), held(cache)
    if record is None:
        return torch.arange(slots).expand(batch, -1)
    since = torch.arange(seen - (slots - record.places.shape[1]), seen, device=record.places.device)
    return torch.cat([record.places, since.expand(batch, -1)], dim=1)


def window_masks(
    record: Record, cache: Any, mask: Any, blocks: Tensor, window: int, both_ways: Collection[str], floats: bool
) -> dict[str, Tensor]:
    """Masks of full and of sliding-window layers for tokens that follow a pruned cache: windows count what was seen.

    Args:
        mask: As for `continue_from`.
        blocks: (B, new) the picture that each new token is of, -1 for text.
        both_ways: Types of layers in which the tokens of a picture see each other both ways.
        floats: Whether the attention adds its masks.

    Returns:
        (B, 1, new, held + new) each, by the names of layer types.
    """
    (batch, new), seen, slots, like = blocks.shape, cache.get_seq_length(), held(cache), with_slots(cache.layers)[0].keys
    flat = continue_from(record, cache, torch.ones(batch, seen + new) if mask is None else mask, new)
    assert flat is not None  # a mask was given
    valid = flat[:, seen - slots :].bool().to(like.device)
    queries, blocks = torch.arange(seen, seen + new, device=like.device).expand(batch, -1), blocks.to(like.device)
    keys = torch.cat([held_places(record, cache, batch).to(like.device), queries], dim=1)  # (B, held + new)
    behind = queries[:, :, None] - keys[:, None]
    together = torch.nn.functional.pad(blocks, (slots, 0), value=-1)[:, None] == blocks[:, :, None]
    causal, together = behind >= 0, together & (blocks >= 0)[:, :, None]
    masks = {}
    for name, near in (("full_attention", valid[:, None]), ("sliding_attention", valid[:, None] & (behind < window))):
        masks[name] = (((causal | together) if name in both_ways else causal) & near)[:, None]
    if not floats:
        return masks
    low = torch.finfo(like.dtype).min
    return {name: torch.zeros_like(one, dtype=like.dtype).masked_fill(~one, low) for name, one in masks.items()}


def compact_cache(cache: Cache | None, shared: Any, layers: int, start: int, index: Tensor) -> None:
    """Shorten the first `layers` layers of a cache, from slot `start` on, to `index` (B, S') counted from there.

    Args:
        shared: (keys, values) that later layers will look at, by name; None where they have their own. Shortened, too.
    """
    made: dict[int, tuple[Tensor, Tensor]] = {}

    def shorten(states: Tensor) -> Tensor:
        if id(states) not in made:  # what is shared is in the cache, too, and stays one tensor
            short = take(states[:, :, start:], index, dim=2)
            made[id(states)] = states, torch.cat([states[:, :, :start], short], dim=2) if start else short
        return made[id(states)][1]

    for layer in with_slots(cache.layers[:layers]) if cache is not None else ():
        layer.keys, layer.values = shorten(layer.keys), shorten(layer.values)
    for name, (keys, values) in list((shared or {}).items()):
        shared[name] = shorten(keys), shorten(values)


def finish_cache(cache: Cache, record: Record) -> None:
    """Let a cache that was shortened know what it has seen."""
    cache.layers = [PrunedLayer.of(layer, record) if isinstance(layer, CacheLayerMixin) else layer for layer in cache.layers]


def cache_bytes(cache: Cache | None) -> int:
    """Bytes that the keys and values of a cache occupy."""
    layers = with_slots(cache.layers) if cache is not None else []
    tensors = [tensor for layer in layers for tensor in (layer.keys, layer.values) if tensor is not None]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
