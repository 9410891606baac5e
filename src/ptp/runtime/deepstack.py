"""DeepStack: features of vision layers that a language model adds to visual tokens behind its first layers."""

import torch
from torch import Tensor

from .prefill import Prefill


def add_late_features(prefill: Prefill, layer: int, hidden: Tensor) -> Tensor:
    """Add those of one layer to the visual tokens that are left.

    Args:
        hidden: (B, S', D) the layer's output.
    """
    if prefill.late is None or layer >= len(prefill.late[1]):
        return hidden
    places, (mask, features) = prefill.remaining.places, prefill.late
    mask = mask.to(places.device)
    order = (mask.flatten().cumsum(0) - 1).view_as(mask)
    visual = mask.gather(1, places) & prefill.remaining.valid
    rows = order.gather(1, places).clamp_min(0).to(hidden.device)  # of what is no visual token: any, it is not added
    added = hidden + features[layer].to(hidden.device, hidden.dtype)[rows]
    return torch.where(visual[..., None].to(hidden.device), added, hidden)
