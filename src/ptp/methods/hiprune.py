"""HiPrune (arXiv 2508.00553): objects from a middle vision layer, the whole picture from the output layer."""

from dataclasses import dataclass

import torch

from ..pruner import Stage
from ..runtime import Picture, Reads, VisionRead
from ..selection import Selection, check_share, even_budgets, keep_best, total_budget
from .layers import ReadsVisionLayer


@dataclass(frozen=True, kw_only=True)
class HiPrunePruner(ReadsVisionLayer):
    """Keeps anchors and their neighbours, which are objects, and fills up with registers, which stand for the whole picture.

    Rule: of K kept tokens, round(alpha K / 5) are anchors, the most attended of the object layer; their buffers, the up to four
    neighbours, stay too; registers are the most attended of `vision_layer`. A token's attention is what it receives, the mean
    over heads and queries, not what [CLS] pays. (README, "Method" and "Hyperparameter Setting", and `encode_images` of
    LLaVA/llava/model/llava_arch.py in github Danielement321/HiPrune at 6e83a12; CLIP reads layer 9 of 24, the default here.)

    Deviations: the authors choose anchors tile by tile, which rounds to none in small tiles. Here the whole picture's
    K counts and its tiles compete (the same for one tile); only budgets are even. Beyond a border is no neighbour: theirs goes
    on in the next row, or ends at the first or last token. Where a tile's budget is too small, anchors go before buffers, the
    more attended first: theirs fails. Queries and keys are the patches alone: theirs count [CLS] too. Joined patches are
    averaged, as in their Qwen2.5-VL code; for its layer 16 of 32, without regions, set `object_depth=0.5` and a huge `window`.

    Attributes:
        object_depth: Depth of the object layer, as a share of the encoder's layers.
        object_share: The authors' alpha, share of the budget for anchors and buffers.
    """

    object_depth: float = 0.375
    object_share: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("object_depth", self.object_depth)
        check_share("object_share", self.object_share)

    def reads(self, vision_depth: int) -> Reads:
        layer = max(1, round(self.object_depth * vision_depth)) - 1
        return Reads(vision=(VisionRead(layer, "received"), VisionRead(self.vision_layer, "received")))

    def select(self, picture: Picture, stage: Stage) -> Selection:
        objects, scores = picture.saliency, picture.vision[1].saliency
        total = total_budget(stage.keep_ratio, picture.tokens)
        rank = torch.zeros_like(objects, dtype=torch.long)
        rank[keep_best(objects, [picture.tokens], [round(self.object_share * total / 5)])] = 2
        for part, tile in zip(rank.split(picture.sizes), picture.layout.tiles, strict=True):
            grid = torch.nn.functional.pad(part.view(tile.rows, tile.columns) // 2, (1, 1, 1, 1))
            near = grid[:-2, 1:-1] + grid[2:, 1:-1] + grid[1:-1, :-2] + grid[1:-1, 2:]
            part.copy_(torch.maximum(part, near.clamp(max=1).flatten()))
        order = torch.where(rank > 0, objects, scores).argsort(descending=True, stable=True)
        order = order[rank[order].argsort(descending=True, stable=True)]
        places = torch.empty_like(order).scatter(0, order, torch.arange(len(order), device=order.device))
        kept = keep_best(-places, picture.sizes, even_budgets(picture.sizes, total))
        return Selection(kept, picture.count_per_tile(kept), {"token": scores} if self.record_scores else {})
