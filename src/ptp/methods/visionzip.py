"""VisionZip (arXiv 2412.04467): dominant tokens, and the rest merged into contextual ones."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..pruner import Stage
from ..runtime import Picture
from ..selection import Selection, averages, check_share, even_budgets, keep_best, total_budget
from .layers import ReadsVisionLayer


@dataclass(frozen=True, kw_only=True)
class VisionZipPruner(ReadsVisionLayer):
    """Each tile keeps the tokens that [CLS] attends to most and merges the others into evenly spaced ones.

    Rule (section 3): dominant tokens by [CLS] attention; of the remaining ones, evenly spaced targets; every other
    remaining token is assigned to the target most similar to it and averaged into it. Before the language model.

    Deviations: the similarity is that of the visual tokens after the projector, not of the encoder's keys, which
    belong to patches that the projector has joined; a target is averaged with its tokens, all alike.

    Attributes:
        contextual: Share of the kept tokens that are contextual (the paper: 10 of 64).
    """

    contextual: float = 10 / 64

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("contextual", self.contextual)

    def select(self, picture: Picture, stage: Stage) -> Selection:
        scores = picture.saliency
        budgets = even_budgets(picture.sizes, total_budget(stage.keep_ratio, picture.tokens))
        targets = [round(self.contextual * budget) for budget in budgets]
        dominant = keep_best(scores, picture.sizes, [b - c for b, c in zip(budgets, targets, strict=True)])
        groups = torch.full((picture.tokens,), -1, device=scores.device)
        groups[dominant] = dominant
        features, start = F.normalize(picture.states, dim=-1), 0
        for size, count in zip(picture.sizes, targets, strict=True):
            rest = start + (groups[start : start + size] < 0).nonzero()[:, 0]
            start += size
            if count:
                target = rest[torch.arange(count, device=rest.device) * len(rest) // count]
                groups[rest] = target[(features[rest] @ features[target].T).argmax(dim=1)]
                groups[target] = target
        kept = (groups == torch.arange(picture.tokens, device=groups.device)).nonzero()[:, 0]
        return Selection(kept, budgets, {"token": scores} if self.record_scores else {}, averages(groups, kept))
