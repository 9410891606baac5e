"""What a forward pass of the model's core was called with, and what of it cannot be pruned."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor

from ..adapters import Adapter
from ..errors import UnsupportedModelError
from .cache import Record, check_cache, continue_from, held, held_places, record_of, window_masks

SOUND = "input_features"
"""The argument that holds sound."""


@dataclass(frozen=True)
class Held:
    """What the KV cache held before a prefill.

    Attributes:
        seen: Tokens that it has seen.
        valid: (B, M) bool, which of the slots that it holds are tokens. places: (B, M) where these were, nothing removed.
    """

    seen: int
    valid: Tensor
    places: Tensor


@dataclass(frozen=True)
class Incoming:
    """The arguments of the core's forward that matter here.

    Attributes:
        input_ids: (B, S) the new tokens; None where they came as embeddings.
        new: S.
        encoded: Encoder outputs that were passed, by modality. fresh: Names of the pixel (or sound) arguments passed.
        cache: The KV cache, None without one. seen: Tokens that it has seen. record: What left it; None where nothing has.
        mask: The attention mask as it was passed; behind a pruned cache, one in which what left is padding.
    """

    input_ids: Tensor | None
    new: int
    encoded: Mapping[str, Any]
    fresh: frozenset[str]
    cache: Any
    seen: int
    record: Record | None
    mask: Any

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> "Incoming":
        """Read the arguments.

        Raises:
            UnsupportedCacheError: they go on from a pruned cache, and do not say which tokens are new.
        """
        input_ids = kwargs.get("input_ids", args[0] if args else None)
        embeddings = kwargs.get("inputs_embeds")
        new = next((given.shape[1] for given in (input_ids, embeddings) if given is not None), 0)
        encoded = {name: output for name, output in (kwargs.get("mm_encoder_outputs") or {}).items() if output is not None}
        fresh = frozenset(name for name in ("pixel_values", "pixel_values_videos", SOUND) if kwargs.get(name) is not None)
        cache, mask = kwargs.get("past_key_values"), kwargs.get("attention_mask")
        seen = cache.get_seq_length() if cache is not None else 0
        record = record_of(cache) if seen else None
        if record is not None:
            mask = continue_from(record, cache, mask, new)
        return cls(input_ids, new, encoded, fresh, cache, seen, record, mask)

    def shows_pictures(self, adapter: Adapter, guessing: bool = False) -> bool:
        """Whether pictures come with the new tokens.

        Args:
            guessing: Image tokens may come without their pictures.

        Raises:
            UnsupportedModelError: they are of a kind that the family cannot prune.
            ValueError: they came in a way that hides where they are.
        """
        kinds = adapter.modalities
        pixels = self.fresh - {SOUND}
        shown = bool(pixels or self.encoded)
        if (pixels - {kind.pixels for kind in kinds}) or (self.encoded.keys() - {kind.name for kind in kinds}):
            raise UnsupportedModelError(
                f"Videos cannot be pruned in {adapter.family}. Pass frames as pictures, or detach the pruner first."
            )
        ids = [kind.token_id for kind in kinds if kind.pixels in self.fresh or kind.name in self.encoded]
        if len(set(ids)) < len(ids):
            raise UnsupportedModelError(
                f"{adapter.family} gives pictures and videos the same token, and takes either in one call, got both. Pass the "
                "video's frames as pictures, or ask about one of them in a later turn."
            )
        if self.encoded and "mm_encoder_outputs" not in inspect.signature(adapter.core.forward).parameters:
            raise UnsupportedModelError(
                f"mm_encoder_outputs cannot be used: {type(adapter.core).__name__} of transformers {transformers.__version__} "
                "takes none, and would read image tokens as words. Pass pixel_values, or install transformers 5.18 or newer."
            )
        if shown and SOUND in self.fresh:
            raise UnsupportedModelError(
                f"Pictures cannot be pruned beside sound in {adapter.family}: its tokens are neither words nor visual. Ask "
                "about one of them at a time, or detach the pruner first."
            )
        if self.input_ids is None and (shown or self.new > 1):
            raise ValueError(
                "input_ids are needed while visual tokens are pruned, got inputs_embeds: nothing tells where pictures are in "
                "them. Pass input_ids and the pictures, or detach the pruner first."
            )
        if not shown and not guessing and self.new > 1 and bool(adapter.visual_tokens(self._ids).any()):
            raise ValueError(
                "The prompt has image tokens but no pictures came with it: they would be read as words. Pass the pictures, "
                "and no prefill_chunk_size."
            )
        return shown

    def check(self, adapter: Adapter) -> None:
        """Raise UnsupportedModelError or ValueError where pictures cannot be pruned with these arguments."""
        windowed, attention = adapter.text.window is not None, adapter.text.config._attn_implementation
        if windowed and attention not in ("eager", "sdpa"):
            raise UnsupportedModelError(
                f"A model with sliding windows can be pruned under eager or sdpa attention, got {attention!r}. Load it with "
                'attn_implementation="sdpa".'
            )
        check_cache(self.cache, windowed)
        if self.mask is not None and not (isinstance(self.mask, Tensor) and self.mask.dim() == 2):
            raise ValueError(
                "attention_mask must be (B, S) while visual tokens are pruned. Pass the processor's mask unchanged."
            )
        if self.mask is not None and self.mask.shape[1] < held(self.cache) + self.new:
            raise ValueError(
                f"attention_mask must cover what the KV cache holds and the {self.new} new tokens, got {self.mask.shape[1]}. "
                "Pass the mask of the whole conversation."
            )

    def tokens(self) -> tuple[Tensor, Held]:
        """(B, S) bool, which of the new tokens are no padding; and what the cache holds."""
        batch, slots = len(self._ids), held(self.cache)
        if self.mask is None:
            valid = self._ids.new_ones(batch, slots + self.new, dtype=torch.bool)
        else:
            valid = self.mask[:, self.mask.shape[1] - slots - self.new :].bool()
        places = held_places(self.record, self.cache, batch).to(valid.device) if slots else valid[:, :0].long()
        return valid[:, slots:], Held(self.seen, valid[:, :slots], places)

    def attention_mask(self, adapter: Adapter, kwargs: Mapping[str, Any]) -> Any:
        """The mask that the core is given instead of the one passed, behind a pruned cache: (B, seen + S), or one mask for
        each kind of layer where some have sliding windows, which count what was seen."""
        text, (told, both_ways) = adapter.text, adapter.both_ways
        kinds = kwargs.get(told)
        if text.window is None or self.record is None:
            return self.mask
        blocks = torch.full((len(self.record.valid), self.new), -1)
        if kinds is not None:
            image = ((kinds[:, -self.new :] == 1) | (kinds[:, -self.new :] == 2)).cpu()
            blocks = torch.where(image, (image & ~torch.nn.functional.pad(image, (1, 0))[:, :-1]).cumsum(dim=1), blocks)
        eager = text.config._attn_implementation == "eager"
        return window_masks(self.record, self.cache, kwargs.get("attention_mask"), blocks, text.window, both_ways, eager)

    @property
    def _ids(self) -> Tensor:
        assert self.input_ids is not None  # `shows_pictures` has refused embeddings
        return self.input_ids
