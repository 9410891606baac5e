"""Gathering the states of the tokens that are left, and averaging others into them."""

import torch
from torch import Tensor


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


def merge(states: Tensor, row: int, sources: Tensor, targets: Tensor, kept_slots: Tensor, kept: Tensor) -> Tensor:
    """Replace the states of kept tokens by the means of those that go into them; returns new states.

    Args:
        states: (B, S', D). row: The batch row of the picture.
        sources: (N',) slots of its tokens.
        targets: (N',) the kept token, by its index, that each goes into; -1 for none.
        kept_slots: (K,) slots of the kept tokens. kept: (K,) their ascending indices.
    """
    states, targets, kept = states.clone(), targets.to(states.device), kept.to(states.device)
    group = torch.searchsorted(kept, targets.clamp_min(0)).where(targets >= 0, len(kept))
    sums = states.new_zeros(len(kept) + 1, states.shape[-1], dtype=torch.float32)
    sums.index_add_(0, group, states[row, sources].float())
    counts = torch.bincount(group, minlength=len(kept) + 1).clamp_min(1)
    states[row, kept_slots] = (sums / counts[:, None])[:-1].to(states.dtype)
    return states
