"""GlobalCom2 (arXiv 2501.05179): the thumbnail commands how the tiles are compressed."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .. import scoring
from ..pruner import Pruner, Stage
from ..runtime import Picture
from ..selection import Selection, keep_best, tile_budgets, total_budget


@dataclass(frozen=True, kw_only=True)
class GlobalCom2Pruner(Pruner):
    """Tiles that the thumbnail attends to keep more; tokens by their own tile's attention and the thumbnail's.

    Rule (section 3): a tile's ratio is R (1 + sigma - mean sigma), sigma = softmax over tiles of the thumbnail's [CLS]
    attention on them, divided by `temperature`; the thumbnail keeps R. Within a tile, tokens by the sum of two scores,
    each of L2 norm 1: the tile's own [CLS] attention, and the thumbnail's interpolated (bilinear) to the tile. Before the
    language model.

    Deviations: attention is first pooled onto visual tokens; ratios are made to meet the budget exactly.

    Attributes:
        temperature: Of the softmax over tiles; the default is that of the authors' code.
        vision_layer: Vision layer whose attention is read.
    """

    temperature: float = 10.0
    vision_layer: int = -1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature must be a positive number, got {self.temperature}. Smaller is sharper; try 10.")

    @property
    def vision_layers(self) -> tuple[int, ...]:
        return (self.vision_layer,)

    def select(self, picture: Picture, stage: Stage) -> Selection:
        local, total = picture.attention, total_budget(stage.keep_ratio, picture.tokens)
        if picture.grid is None:
            return Selection(keep_best(local[0], picture.sizes, [total]), [total])
        columns, rows = picture.grid
        thumbnail = picture.patch_attention[-1]
        mass = scoring.thumbnail_attention(thumbnail, picture.grid) * thumbnail.sum()
        sigma = (mass / self.temperature).softmax(dim=0)
        budgets = tile_budgets((1 + sigma - sigma.mean()).tolist(), picture.sizes, total)
        side = round(local.shape[1] ** 0.5)
        square = local[-1].view(1, 1, side, side)
        wide = F.interpolate(square, size=(rows * side, columns * side), mode="bilinear", align_corners=False)
        seen = wide.view(rows, side, columns, side).transpose(1, 2).reshape(rows * columns, side * side)
        tiles = F.normalize(local[:-1], dim=1) + F.normalize(seen, dim=1)
        scores = torch.cat([tiles, local[-1:]]).flatten()
        kept = keep_best(scores, picture.sizes, budgets)
        return Selection(kept, budgets, {"fused": scores} if self.record_scores else {})
