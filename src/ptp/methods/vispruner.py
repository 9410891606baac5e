"""VisPruner (arXiv 2412.01818v2): important tokens, and diverse ones among the rest."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from ..pruner import Stage
from ..runtime import Picture
from ..selection import Selection, check_share, even_budgets, total_budget
from .layers import ReadsVisionLayer

STEP = 8
"""Duplicates removed at a time."""


@dataclass(frozen=True, kw_only=True)
class VisPruner(ReadsVisionLayer):
    """Each tile keeps the tokens that [CLS] attends to most, and of the rest those unlike the others.

    Rule (section 3): half of the budget by [CLS] attention. The others, best first, are dealt in turn to two sets; the
    tokens of the first set most similar (cosine) to any of the second leave, at most eight at a time, and the sets are
    dealt anew, until the other half of the budget is left. Before the language model.

    Deviation: the features are the visual tokens after the projector, which joins the encoder's patches.

    Attributes:
        important: Share of the budget kept by attention.
    """

    important: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("important", self.important)

    def select(self, picture: Picture, stage: Stage) -> Selection:
        scores = picture.saliency
        budgets = even_budgets(picture.sizes, total_budget(stage.keep_ratio, picture.tokens))
        features, kept, start = F.normalize(picture.states, dim=-1), [], 0
        for size, budget in zip(picture.sizes, budgets, strict=True):
            order = start + scores[start : start + size].argsort(descending=True, stable=True)
            start += size
            first = int(self.important * budget)
            kept += [*order[:first].tolist(), *distinct(features, order[first:], budget - first).tolist()]
        chosen = picture.alive.new_tensor(sorted(kept))
        return Selection(chosen, budgets, {"token": scores} if self.record_scores else {})


def distinct(features: Tensor, order: Tensor, count: int) -> Tensor:
    """The `count` of the tokens `order` (best first) that are left when duplicates have left, in no order."""
    while (extra := min(STEP, len(order) - count)) > 0:
        first, second = order[::2], order[1::2]
        if not len(second):  # a single token, and none wanted
            return order[:count]
        likeness = (features[first] @ features[second].T).amax(dim=1)
        stays = likeness.argsort(descending=True, stable=True)[min(extra, len(first)) :].sort().values
        order = first[stays].new_tensor([*first[stays].tolist(), *second.tolist()])
    return order
