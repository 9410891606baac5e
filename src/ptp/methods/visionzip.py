"""VisionZip (arXiv 2412.04467): dominant tokens, and the rest merged into contextual ones."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..pruner import Stage
from ..runtime import Picture, Reads, VisionRead
from ..selection import Selection, averages, check_share, even_budgets, keep_best, total_budget
from .layers import ReadsVisionLayer


@dataclass(frozen=True, kw_only=True)
class VisionZipPruner(ReadsVisionLayer):
    """Each tile keeps the tokens that [CLS] attends to most and merges the others into evenly spaced ones.

    Rule (section 3; `CLIPVisionTower_VisionZip.forward` of visionzip/clip_encoder.py in github dvlab-research/VisionZip at
    3151f6d): dominant tokens by [CLS] attention in the layer that feeds the projector. Of the M tokens left every M // c-th is
    a target, from the first on, c in all. Every other one is assigned to the target with the most similar key (cosine; the
    same layer, mean over heads), and a target becomes **itself plus the mean** of what is assigned to it. 54 dominant and 10
    contextual of 64, and the same proportion of other budgets. Before the language model.

    Deviations: in the authors' code [CLS] itself is one of the 54: it has no place in the picture, and a model's layout none
    for it, so its share goes to one more patch. They merge before the projector, we after it, where patches may be joined (keys
    and attention are then their means); their tokens go on dominant first, ours in the picture's order at their own positions.
    A tile that keeps two tokens or more has at least one contextual one (rounding gives none below four).

    Attributes:
        contextual: Share of the kept tokens that are contextual. 0 merges nothing.
    """

    contextual: float = 10 / 64

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("contextual", self.contextual)

    def reads(self, vision_depth: int) -> Reads:
        return Reads(vision=(VisionRead(self.vision_layer, keys=True),))

    def select(self, picture: Picture, stage: Stage) -> Selection:
        scores, sizes = picture.saliency, picture.sizes
        budgets = even_budgets(sizes, total_budget(stage.keep_ratio, picture.tokens))
        counts = [max(round(self.contextual * budget), int(self.contextual > 0 and budget > 1)) for budget in budgets]
        left = torch.ones(picture.tokens, dtype=torch.bool, device=scores.device)
        left[keep_best(scores, sizes, [budget - count for budget, count in zip(budgets, counts, strict=True)])] = False
        into, keys, start = torch.full_like(left, -1, dtype=torch.long), F.normalize(picture.vision[0].keys, dim=-1), 0
        for size, count in zip(sizes, counts, strict=True):
            rest = start + left[start : start + size].nonzero()[:, 0]
            start += size
            if count:
                targets = rest[:: len(rest) // count][:count]
                into[rest] = targets[(keys[rest] @ keys[targets].T).argmax(dim=1)]
                into[targets] = -1
                left[targets] = False
        kept = (~left).nonzero()[:, 0]
        mix = averages(into, kept).scatter_add_(1, kept[:, None], torch.ones_like(kept[:, None], dtype=torch.float32))
        return Selection(kept, budgets, {"token": scores} if self.record_scores else {}, mix)
