"""What the runtime knows of a method, and of one prefill on its way through the layers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from transformers import Cache

from ..adapters import Span
from ..selection import Selection
from .compaction import Slots, compact, take
from .picture import Picture


class StageLike(Protocol):
    """A stage, as far as the runtime cares."""

    @property
    def layer(self) -> int: ...


class Method(Protocol):
    """A pruning method, as far as the runtime cares."""

    @property
    def window(self) -> int: ...
    @property
    def vision_layers(self) -> tuple[int, ...]: ...
    @property
    def text_rows(self) -> Literal["instruction", "last"] | None: ...
    @property
    def text_reduce(self) -> Literal["max", "mean"]: ...
    def stages(self, layers: int) -> tuple[StageLike, ...]: ...
    def raters(self, picture: Picture) -> Tensor | None: ...
    def select(self, picture: Picture, stage: Any) -> Selection: ...


@dataclass
class Call:
    """State of one prefill on its way through the layers.

    Attributes:
        input_ids: (B, S) the new tokens. padding: (B, S) bool, True marks a token.
        encoded: Encoder outputs that the caller passed, by modality; others are made in this call.
        text: (B, R) places of the text tokens that score, among the new ones. text_valid: (B, R).
        cache: The KV cache, None without one.
        seen: Tokens that it has seen before this call.
        past: (B, M) bool, which of the slots that it holds are tokens. past_places: (B, M) where these were, unpruned.
        slots: Where the tokens of the current sequence come from among the new ones.
        late: Mask (B, S) and features of DeepStack, which the runtime adds in the model's place.
        pruned: Whether any token has left.
    """

    input_ids: Tensor
    padding: Tensor
    encoded: Mapping[str, Any]
    text: Tensor
    text_valid: Tensor
    cache: Cache | None
    seen: int
    past: Tensor
    past_places: Tensor
    slots: Slots = field(init=False)
    spans: list[Span] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    late: tuple[Tensor, Sequence[Tensor]] | None = None
    pruned: bool = False
    shortened: dict[Any, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        order = torch.arange(self.input_ids.shape[1], device=self.input_ids.device).expand_as(self.input_ids)
        self.slots = Slots(order, self.padding)

    def places(self) -> Tensor:
        """(B, S) where each new token is in the current sequence; 0 for those that left."""
        place = torch.zeros_like(self.input_ids)
        order = torch.arange(self.slots.index.shape[1], device=place.device).expand_as(self.slots.index)
        return place.scatter_reduce_(1, self.slots.index, order * self.slots.valid, reduce="amax")

    def text_places(self) -> Tensor:
        """(B, R) where the scoring text tokens are in the current sequence; they never leave."""
        return self.places().gather(1, self.text)

    def leave(self, stays: Tensor) -> Slots:
        """Shorten the current sequence to the True entries of (B, S'); returns where the rest was in it."""
        slots = compact(stays)
        self.slots = Slots(self.slots.index.gather(1, slots.index), slots.valid)
        self.shortened.clear()
        self.pruned = True
        return slots

    def shorten_mask(self, mask: Tensor) -> Tensor:
        """A layer's own mask (B or 1, 1, S, S), at the slots of the current sequence; layers of a kind share it."""
        if id(mask) not in self.shortened:
            index, valid = self.slots.index.to(mask.device), self.slots.valid.to(mask.device)
            past = self.past.shape[1]
            order = torch.arange(past, device=mask.device).expand(len(index), -1)
            short = take(take(mask, index, dim=2), torch.cat([order, past + index], dim=1), dim=3)
            own = torch.eye(index.shape[1], dtype=torch.bool, device=mask.device)
            padding = torch.nn.functional.pad(~valid[:, None, None] & ~own, (past, 0))
            empty = torch.nn.functional.pad(own & ~valid[:, None, :, None], (past, 0))  # pads see themselves: none sees nothing
            low, zero = (False, True) if mask.dtype == torch.bool else (torch.finfo(mask.dtype).min, 0.0)
            short = short.masked_fill(padding, low).masked_fill(empty, zero)
            self.shortened[id(mask)] = mask, short
        return self.shortened[id(mask)][1]

    def shorten(self, argument: Any) -> Any:
        """A layer's (B or 1, S, ...) argument, or a tuple of such, at the slots of the current sequence.

        Layers share their arguments, and each is shortened once.
        """
        if argument is None:
            return None
        if isinstance(argument, tuple):
            return tuple(self.shorten(part) for part in argument)
        if id(argument) not in self.shortened:
            self.shortened[id(argument)] = argument, take(argument, self.slots.index, dim=1)
        return self.shortened[id(argument)][1]
