"""Evenly spaced tokens: the baseline that looks at nothing."""

from dataclasses import dataclass

import torch

from ..pruner import Stage
from ..runtime import Picture
from ..selection import Selection, even_budgets, total_budget
from .layers import PrunesAtLayer


@dataclass(frozen=True, kw_only=True)
class UniformGridPruner(PrunesAtLayer):
    """Every tile keeps the same share of its tokens, evenly spaced in raster order."""

    def select(self, picture: Picture, stage: Stage) -> Selection:
        budgets = even_budgets(picture.sizes, total_budget(stage.keep_ratio, picture.tokens))
        kept, start = [], 0
        for size, budget in zip(picture.sizes, budgets, strict=True):
            kept += [start + (2 * i + 1) * size // (2 * budget) for i in range(budget)]
            start += size
        return Selection(torch.tensor(kept, device=picture.alive.device), budgets)
