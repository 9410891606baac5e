"""Which tokens of a prompt are the user's instruction."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .tokenizer import find_tokenizer

PROBE = "instruction"


@dataclass(frozen=True)
class TurnMarkers:
    """How a chat template marks the user's turn, as token ids.

    Attributes:
        opening: Ids that open a user's turn (ChatML: `<|im_start|>`, `user`, newline).
        closing: Id that ends a turn; None where the template has none.
        ignored: Special tokens and the bare newline, which belong to the template or the picture.
    """

    opening: tuple[int, ...]
    closing: int | None
    ignored: tuple[int, ...]

    def mask(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Mark the text tokens of each row's last user turn.

        A prompt without turn markers (plain text for a base model) is the user's as a whole.

        Args:
            input_ids: (B, S). attention_mask: (B, S), 0 = padding.

        Returns:
            (B, S) bool; system prompt, role markers, pictures and their markers are False.
        """
        batch, length = input_ids.shape
        order = torch.arange(length, device=input_ids.device).expand(batch, -1)
        start = torch.zeros(batch, 1, dtype=torch.long, device=input_ids.device)
        width = len(self.opening)
        if 0 < width <= length:
            opening = torch.tensor(self.opening, device=input_ids.device)
            found = (input_ids.unfold(1, width, 1) == opening).all(-1)  # (B, S - width + 1)
            last = torch.where(found, order[:, : found.shape[1]], -1).amax(dim=1, keepdim=True)
            start = torch.where(last < 0, start, last + width)
        end = torch.full_like(start, length)
        if self.closing is not None:
            closes = (input_ids == self.closing) & (order >= start)
            end = torch.where(closes, order, length).amin(dim=1, keepdim=True)
        text = ~torch.isin(input_ids, torch.tensor(self.ignored, device=input_ids.device))
        return (order >= start) & (order < end) & text & attention_mask.bool()


def turn_markers(tokenizer: Any) -> TurnMarkers:
    """Read the markers off a tokenizer's chat template, by rendering one user turn with it."""
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    newline = tokenizer.encode("\n", add_special_tokens=False)
    ignored = tuple(sorted(special | set(newline if len(newline) == 1 else ())))
    if not getattr(tokenizer, "chat_template", None):
        return TurnMarkers((), None, ignored)
    message = [{"role": "user", "content": [{"type": "text", "text": PROBE}]}]
    text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    if PROBE not in text:  # a template that knows only plain strings
        message = [{"role": "user", "content": PROBE}]
        text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    before, _, after = text.partition(PROBE)
    opening = tokenizer.encode(before, add_special_tokens=False)
    first = max((i for i, token in enumerate(opening) if token in special), default=0)
    closing = next((token for token in tokenizer.encode(after, add_special_tokens=False) if token in special), None)
    return TurnMarkers(tuple(opening[first:]), closing, ignored)


def find_markers(model: PreTrainedModel, processor: Any | None) -> TurnMarkers:
    """Markers of `processor` (or tokenizer, or markers themselves), or of the tokenizer saved next to the weights.

    Raises:
        ValueError: there is neither.
    """
    if isinstance(processor, TurnMarkers):
        return processor
    tokenizer = find_tokenizer(model, processor)
    if tokenizer is None:
        raise ValueError(
            "alpha > 0 needs to know which tokens are the instruction, and the model comes without a tokenizer. "
            "Pass processor=... (or a tokenizer) next to the model, or use alpha=0."
        )
    return turn_markers(tokenizer)


def pad_rows(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of the True entries of each row of a (B, S) mask, padded: (B, R) int64 and (B, R) bool validity."""
    counts: Sequence[int] = mask.sum(dim=1).tolist()
    width = max(max(counts), 1)
    order = torch.arange(mask.shape[1], device=mask.device)
    rows = torch.where(mask, order, mask.shape[1]).sort(dim=1).values[:, :width]
    valid = rows < mask.shape[1]
    return rows.where(valid, 0), valid
