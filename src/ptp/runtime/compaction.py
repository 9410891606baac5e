"""Shortening: which slots of a batch stay, and gathering tensors to them."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Slots:
    """A batch after some tokens left: where each remaining slot came from.

    Attributes:
        index: (B, S') int64 into the sequence before. Rows shorter than the longest are padded on the left.
        valid: (B, S') bool; False marks padding.
    """

    index: Tensor
    valid: Tensor

    @property
    def padded(self) -> bool:
        """Whether any row holds padding."""
        return not bool(self.valid.all())


def compact(keep: Tensor) -> Slots:
    """Slots of the True entries of a (B, S) mask, in order, rows aligned at their ends."""
    length = int(keep.sum(dim=1).max())
    order = torch.arange(keep.shape[1], device=keep.device)
    index = torch.where(keep, order, -1).sort(dim=1).values[:, keep.shape[1] - length :]
    return Slots(index.clamp_min(0), index >= 0)


def take(states: Tensor, index: Tensor, dim: int) -> Tensor:
    """Gather `states` along `dim` by a (B, S') index; dimension 0 of `states` is B, or 1 for all rows alike."""
    batch = index.shape[0]
    states = states.expand(batch, *states.shape[1:])
    if batch == 1:  # one copy of whole slices: faster than an element-wise gather
        return states.index_select(dim, index[0].to(states.device))
    shape = [1] * states.dim()
    shape[0], shape[dim] = index.shape
    size = list(states.shape)
    size[dim] = index.shape[1]
    return states.gather(dim, index.to(states.device).view(shape).expand(size))
