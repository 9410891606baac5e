"""What the runtime knows of a method, and of one prefill on its way through the layers."""

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from ..adapters import Span
from ..selection import Selection
from .compaction import Slots
from .picture import Picture


class StageLike(Protocol):
    """A stage, as far as the runtime cares."""

    @property
    def layer(self) -> int: ...


class Method(Protocol):
    """A pruning method, as far as the runtime cares."""

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
    """State of one prefill on its way through the layers."""

    input_ids: Tensor
    spans: list[Span]
    encoded: Any  # the encoder's output the caller passed, None if it is made in this call
    text: Tensor  # (B, R) positions of the text tokens that score, in the unpruned sequence
    text_valid: Tensor  # (B, R)
    padding: Tensor = field(init=False)  # (B, S) bool, True = token
    position_ids: Tensor = field(init=False)  # (B, S)
    slots: Slots = field(init=False)  # of the current sequence, in the unpruned one
    pictures: list[Picture] = field(default_factory=list)
    short: dict[str, Any] | None = None  # what later layers get instead of the full-length arguments

    def places(self) -> Tensor:
        """(B, S) where each token of the unpruned sequence is in the current one; 0 for those that left."""
        place = torch.zeros_like(self.input_ids)
        order = torch.arange(self.slots.index.shape[1], device=place.device).expand_as(self.slots.index)
        return place.scatter_reduce_(1, self.slots.index, order * self.slots.valid, reduce="amax")

    def text_places(self) -> Tensor:
        """(B, R) where the scoring text tokens are in the current sequence; they never leave."""
        return self.places().gather(1, self.text)
