"""DART (arXiv 2502.11494): a few pivots, and the tokens that duplicate them least."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..pruner import Stage
from ..runtime import Picture
from ..selection import Selection, total_budget
from .layers import PrunesAtLayer


@dataclass(frozen=True, kw_only=True)
class DARTPruner(PrunesAtLayer):
    """Keeps pivots and, for each pivot in turn, the tokens least similar to it.

    Rule (section 4): at a shallow layer, pivots are the tokens whose keys have the largest L1 norm; every pivot then adds an
    equal share of the budget: the tokens of lowest cosine similarity to it among those not chosen yet.

    Deviations: pivots are visual tokens only; keys are taken before rotary positions; where the budget is smaller than
    `pivots`, only pivots are kept.

    Attributes:
        pivots: How many.
    """

    pivots: int = 8
    prune_layer: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.pivots, int) or self.pivots < 1:
            raise ValueError(f"pivots must be a positive number, got {self.pivots!r}. The paper takes 8.")

    def select(self, picture: Picture, stage: Stage) -> Selection:
        total = total_budget(stage.keep_ratio, picture.tokens)
        norms = picture.keys.abs().sum(dim=-1)
        pivots = norms.argsort(descending=True, stable=True)[: min(self.pivots, total)]
        features = F.normalize(picture.states, dim=-1)
        likeness = features[pivots] @ features.T  # (pivots, N)
        free = torch.ones(picture.tokens, dtype=torch.bool, device=norms.device)
        free[pivots] = False
        for number, row in enumerate(likeness):
            share = (total - len(pivots) + number) // len(pivots)  # the shares sum to what is left
            free[row.masked_fill(~free, torch.inf).argsort(stable=True)[:share]] = False
        kept = (~free).nonzero()[:, 0]
        return Selection(kept, picture.count_per_tile(kept))
