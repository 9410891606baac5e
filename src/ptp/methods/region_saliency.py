"""Region saliency: how much each tile of a picture matters, from one of several sources."""

from collections.abc import Callable

import torch
from torch import Tensor

from .. import scoring
from ..runtime import Picture, VisionSignal


def overview_attention(picture: Picture, signal: VisionSignal) -> Tensor:
    """Attention of a view of the whole picture on each tile, as shares (tiles,).

    The thumbnail's where there is one. A model that does not cut pictures into tiles has seen the picture as a whole: there
    it is the share of the tokens' own saliency.
    """
    if signal.thumbnail is not None:
        boxes = torch.tensor([tile.box for tile in picture.layout.tiles[: picture.tiles]])
        return scoring.thumbnail_attention(signal.thumbnail, boxes, picture.layout.tiles[-1].sides)
    return scoring.region_weights(scoring.split(signal.saliency, picture.sizes).sum(dim=1), None)


def _tokens(picture: Picture) -> tuple[Tensor, tuple[int, ...]]:
    """Saliency (N,) of the tokens that are not the thumbnail's, and how many each tile has."""
    sizes = picture.sizes[: picture.tiles]
    return picture.saliency[: sum(sizes)], sizes


def _likeness(picture: Picture) -> Tensor:
    whole = picture.embeddings[-1] if picture.thumbnail else picture.embeddings.mean(dim=0)
    return scoring.cls_similarity(picture.embeddings[: picture.tiles], whole)


REGIONS: dict[str, Callable[[Picture], Tensor]] = {
    "thumbnail_attention": lambda p: overview_attention(p, p.vision[0]),
    "attention_mass": lambda p: scoring.attention_mass(*_tokens(p)),
    "cls_similarity": _likeness,
    "uniform": lambda p: torch.ones(p.tiles, device=p.saliency.device),
}
"""Saliency of the tiles without the thumbnail, by the source's name."""


def check_region(region: str) -> None:
    """Raise ValueError unless `region` names a source."""
    if region not in REGIONS:
        raise ValueError(f"region must be one of {', '.join(REGIONS)}, got {region!r}. Choose one of these.")


def region_shares(picture: Picture, region: str, temperature: float = 0.3) -> Tensor:
    """Weights (tiles,) of the tiles without the thumbnail, summing to 1.

    Args:
        region: One of `REGIONS`.
        temperature: Softmax temperature of "cls_similarity"; attention shares are used as they are.
    """
    if picture.tiles == 1:
        return torch.ones(1, device=picture.saliency.device)
    return scoring.region_weights(REGIONS[region](picture), temperature if region == "cls_similarity" else None)
