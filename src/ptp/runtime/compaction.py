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


def merge(states: Tensor, row: int, own: Tensor, group: Tensor, target: Tensor, kept: Tensor) -> Tensor:
    """Replace the states of kept tokens by the means of those that go into them; returns new states.

    Args:
        states: (B, S, D). row: The batch row.
        own: (N',) slots of the picture's tokens.
        group: (N',) the kept token (one of `kept`) that each goes into, -1 for none.
        target: (K,) slots of the kept tokens. kept: (K,) their ascending numbers.
    """
    states, group, kept = states.clone(), group.to(states.device), kept.to(states.device)
    place = torch.searchsorted(kept, group.clamp_min(0)).where(group >= 0, len(kept))
    sums = states.new_zeros(len(kept) + 1, states.shape[-1], dtype=torch.float32)
    sums.index_add_(0, place, states[row, own].float())
    counts = torch.bincount(place, minlength=len(kept) + 1).clamp_min(1)
    states[row, target] = (sums / counts[:, None])[:-1].to(states.dtype)
    return states
