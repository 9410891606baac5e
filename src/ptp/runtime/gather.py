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


def take_positions(embeddings: Tensor, index: Tensor) -> Tensor:
    """Gather rotary positions (B or 1, S, D) by a (B, S') index; or (axes, B or 1, S, D), where layers mix the axes."""
    if embeddings.dim() == 4:
        return torch.stack([take(axis, index, dim=1) for axis in embeddings])
    return take(embeddings, index, dim=1)


def merge(states: Tensor, row: int, sources: Tensor, targets: Tensor, mix: Tensor) -> Tensor:
    """Replace the states of kept tokens by combinations of the picture's; returns new states.

    Args:
        states: (B, S', D). row: The batch row of the picture.
        sources: (N',) slots of its tokens. targets: (K,) slots of the kept ones.
        mix: (K, N') the weight of each token in each kept one.
    """
    merged = states.clone()
    merged[row, targets] = (mix.to(states.device, torch.float32) @ states[row, sources].float()).to(states.dtype)
    return merged
