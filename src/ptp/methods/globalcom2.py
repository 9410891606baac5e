"""GlobalCom2 (arXiv 2501.05179): the thumbnail commands how the tiles are compressed."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..pruner import Stage
from ..runtime import Picture
from ..selection import Selection, even_budgets, keep_best, tile_budgets, total_budget
from .layers import ReadsVisionLayer
from .region_saliency import overview_attention


@dataclass(frozen=True, kw_only=True)
class GlobalCom2Pruner(ReadsVisionLayer):
    """Tiles that the thumbnail attends to keep more; tokens by their own tile's attention and the thumbnail's.

    Rule (section 3): a tile's ratio is R (1 + sigma - mean sigma), sigma = softmax over tiles of the thumbnail's [CLS]
    attention on them, divided by `temperature`; the thumbnail keeps R. Within a tile, tokens by the sum of two scores,
    each of L2 norm 1: the tile's own [CLS] attention, and the thumbnail's interpolated (bilinear) to the tile. Before the
    language model.

    Deviations: attention is first pooled onto visual tokens; ratios are made to meet the budget exactly; without a thumbnail
    tiles keep the same share, by their own attention.

    Attributes:
        temperature: Of the softmax over tiles; the default is that of the authors' code.
    """

    temperature: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature must be a positive number, got {self.temperature}. Smaller is sharper; try 10.")

    def select(self, picture: Picture, stage: Stage) -> Selection:
        local, total, sizes = picture.saliency, total_budget(stage.keep_ratio, picture.tokens), picture.sizes
        seen = picture.vision[0].thumbnail
        if seen is None:
            kept = keep_best(local, sizes, budgets := even_budgets(sizes, total))
            return Selection(kept, budgets, {"fused": local} if self.record_scores else {})
        sigma = (overview_attention(picture, picture.vision[0]) * seen.sum() / self.temperature).softmax(dim=0)
        budgets = tile_budgets((1 + sigma - sigma.mean()).tolist(), sizes, total)
        side = round(sizes[-1] ** 0.5)
        *tiles, thumbnail = local.split(sizes)
        boxes = picture.layout.boxes[: -sizes[-1]].to(local.device)
        centers = boxes[:, :2] + boxes[:, 2:] - 1  # grid_sample counts from -1 to 1
        view = F.grid_sample(thumbnail.view(1, 1, side, side), centers[None, None], "bilinear", "border", False).flatten()
        parts = zip(tiles, view.split(sizes[:-1]), strict=True)
        scores = torch.cat([*(F.normalize(own, dim=0) + F.normalize(its, dim=0) for own, its in parts), thumbnail])
        kept = keep_best(scores, picture.sizes, budgets)
        return Selection(kept, budgets, {"fused": scores} if self.record_scores else {})
