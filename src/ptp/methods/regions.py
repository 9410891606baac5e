"""Region saliency: how much each tile of a picture matters, from one of several sources."""

from collections.abc import Callable

import torch
from torch import Tensor

from .. import scoring
from ..runtime import Picture

REGIONS: dict[str, Callable[[Picture], Tensor]] = {
    "thumbnail_attention": lambda p: scoring.thumbnail_attention(p.patch_attention[-1], p.grid or (1, 1)),
    "attention_mass": lambda p: scoring.attention_mass(p.attention[:-1]),
    "cls_similarity": lambda p: scoring.cls_similarity(p.embeddings[:-1], p.embeddings[-1]),
    "uniform": lambda p: torch.ones(len(p.sizes) - 1, device=p.attention.device),
}
"""Saliency of the tiles without the thumbnail, by the source's name."""


def check_region(region: str) -> None:
    """Raise ValueError unless `region` names a source."""
    if region not in REGIONS:
        raise ValueError(f"region must be one of {', '.join(REGIONS)}, got {region!r}. Choose one of these.")


def region_shares(picture: Picture, region: str, temperature: float = 0.3) -> Tensor:
    """Weights (T - 1,) of the tiles without the thumbnail, summing to 1; (1,) for a single tile.

    Args:
        region: One of `REGIONS`.
        temperature: Softmax temperature of "cls_similarity"; attention shares are used as they are.
    """
    if len(picture.sizes) == 1:
        return torch.ones(1)
    return scoring.region_weights(REGIONS[region](picture), temperature if region == "cls_similarity" else None)
