"""GlobalCom2 (arXiv 2501.05179): the thumbnail commands how the tiles are compressed."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .. import scoring
from ..pruner import Stage
from ..runtime import Picture, Reads, VisionRead
from ..selection import Selection, even_budgets, keep_best, tile_budgets, total_budget
from .layers import ReadsVisionLayer


@dataclass(frozen=True, kw_only=True)
class GlobalCom2Pruner(ReadsVisionLayer):
    """Tiles that the thumbnail attends to keep more; tokens by their own tile's attention and the thumbnail's.

    Rule (section 3; llava/model/llava_arch.py and multimodal_encoder/apply_customvit.py in github xuyang-liu16/GlobalCom2 at
    96b2d00). All attention is that of [CLS] **before softmax**, averaged over heads. A tile keeps the share
    R (1 + sigma - mean sigma) of its tokens, sigma = softmax over tiles of the sum of the thumbnail's scores on each, divided
    by `temperature` (`generate_scale_for_crop_features`); the thumbnail keeps R, by its own scores (`compress_thumbnail`).
    Within a tile, tokens by the sum of two vectors, each of L2 norm 1: the tile's own scores, and the thumbnail's interpolated
    (bilinear) over all tiles and cut out (`compress_crops`, `select_topk_crop_features`). Before the language model.

    Deviations: the authors read the encoder's last layer; here it is the last one that feeds the language model, where LLaVA
    takes the last but one. They count every tile down to a whole number and leave a picture of one view alone: here totals
    are met exactly, and one view keeps its best; so do tiles without a thumbnail, all the same share. A patch
    of the thumbnail on the border of two tiles is split by area, not given to one. Scores are pooled onto visual tokens for
    ranking. Without [CLS] the scores are those that a patch gets from the patches of its tile on average.

    Attributes:
        temperature: Of the softmax over tiles; the default is that of the authors' code.
    """

    temperature: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature must be a positive number, got {self.temperature}. Smaller is sharper; try 10.")

    def reads(self, vision_depth: int) -> Reads:
        return Reads(vision=(VisionRead(self.vision_layer, "logits"),))

    def select(self, picture: Picture, stage: Stage) -> Selection:
        local, total, sizes = picture.saliency, total_budget(stage.keep_ratio, picture.tokens), picture.sizes
        seen = picture.vision[0].thumbnail
        if seen is None:
            kept = keep_best(local, sizes, budgets := even_budgets(sizes, total))
            return Selection(kept, budgets, {"fused": local} if self.record_scores else {})
        *cut, whole = picture.layout.tiles
        areas = torch.tensor([tile.box for tile in cut])
        sigma = (scoring.tile_sums(seen, areas, whole.sides) / self.temperature).softmax(dim=0)
        weights = (1 + sigma - sigma.mean()).tolist()
        budgets = tile_budgets([w * size for w, size in zip(weights, sizes[:-1], strict=True)], sizes, total)
        *tiles, thumbnail = local.split(sizes)
        boxes = picture.layout.boxes[: -sizes[-1]].to(local.device)
        centers = boxes[:, :2] + boxes[:, 2:] - 1  # grid_sample counts from -1 to 1
        view = F.grid_sample(
            thumbnail.view(1, 1, whole.rows, whole.columns), centers[None, None], "bilinear", "border", False
        ).flatten()
        parts = zip(tiles, view.split(sizes[:-1]), strict=True)
        scores = torch.cat([*(F.normalize(own, dim=0) + F.normalize(its, dim=0) for own, its in parts), thumbnail])
        kept = keep_best(scores, picture.sizes, budgets)
        return Selection(kept, budgets, {"fused": scores} if self.record_scores else {})
