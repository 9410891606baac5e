"""VisPruner (arXiv 2412.01818v2): important tokens, and diverse ones among the rest."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..pruner import Stage
from ..runtime import Picture
from ..selection import Selection, check_share, even_budgets, total_budget
from .layers import ReadsVisionLayer

STEP = 8
"""Duplicates that the authors remove at a time ..."""
OF = 576
"""... of so many tokens of a tile."""


@dataclass(frozen=True, kw_only=True)
class VisPruner(ReadsVisionLayer):
    """Each tile keeps the tokens that [CLS] attends to most, and of the rest those unlike the others.

    Rule (section 3; `encode_images` of llava/model/llava_arch.py in github Theia-4869/VisPruner at aefa01a): half of the budget
    by [CLS] attention in the layer that feeds the projector, the mean over heads. The others, most attended first, are dealt in
    turn to two sets; the tokens of the first set most similar (cosine) to any of the second leave, a few at a time; then come
    those that are left of the first set, **in the order of their similarity**, then the second set, and they are dealt anew,
    until the other half of the budget is left. Before the language model.

    Deviations: the authors remove 8 at a time in tiles of 576; a step of 8 would be all that there is in a tile of 16, so it
    is max(1, round(8 n / 576)) in one of n tokens. Theirs fails where a set has an odd number: here the first gets one more.
    The features are the visual tokens after the projector, which may join the encoder's patches; theirs are before it.

    Attributes:
        important: Share of the budget kept by attention; the default is that of the authors' scripts.
    """

    important: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("important", self.important)

    def select(self, picture: Picture, stage: Stage) -> Selection:
        scores, sizes = picture.saliency, picture.sizes
        budgets = even_budgets(sizes, total_budget(stage.keep_ratio, picture.tokens))
        states, kept, start = picture.states, list[int](), 0
        exact = states.float() if states.device.type == "mps" else states.double()  # rounding changes what is dealt next
        features = F.normalize(exact, dim=-1)
        for paid, tile, budget in zip(scores.split(sizes), features.split(sizes), budgets, strict=True):
            order, first = paid.argsort(descending=True, stable=True), int(self.important * budget)
            rest = distinct(tile @ tile.T, order[first:], budget - first, max(1, round(STEP * len(tile) / OF)))
            kept += [start + token for token in (*order[:first].tolist(), *rest.tolist())]
            start += len(tile)
        chosen = picture.alive.new_tensor(sorted(kept))
        return Selection(chosen, budgets, {"token": scores} if self.record_scores else {})


def distinct(likeness: Tensor, order: Tensor, count: int, step: int) -> Tensor:
    """The `count` of some tokens that are left when duplicates have left.

    Args:
        likeness: (n, n) of the tile's tokens.
        order: Indices of the tokens to choose from, as they are first dealt.
        step: Duplicates that leave at a time.

    Returns:
        (count,) int64, in no order that means anything.
    """
    while count and (extra := min(step, len(order) - count)) > 0:
        first, second = order[::2], order[1::2]
        most = likeness[first][:, second].amax(dim=1)
        order = torch.cat([first[most.argsort(descending=True, stable=True)[extra:]], second])
    return order[:count]
