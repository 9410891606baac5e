"""Random selection: the baseline that any method must beat."""

from dataclasses import dataclass

import torch

from ..pruner import Stage
from ..runtime import Picture, Reads, VisionRead
from ..selection import Selection, keep_best, tile_budgets, total_budget
from .layers import PrunesAtLayer
from .region_saliency import check_region, region_shares

MAX_SEED = 2**32
"""torch takes 64 bits, and the picture's own number is added."""


@dataclass(frozen=True, kw_only=True)
class RandomPruner(PrunesAtLayer):
    """Keeps a uniformly random subset of each picture's visual tokens.

    Attributes:
        seed: Same seed, same picture, same subset.
        region: A region saliency of `PyramidPruner` that shares the budget over the tiles, for measuring what the region
            level does alone; None ignores tiles.
    """

    seed: int = 0
    region: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.seed, int) or abs(self.seed) > MAX_SEED:
            raise ValueError(f"seed must be a whole number of at most {MAX_SEED:,}, got {self.seed!r}. Try 0.")
        if self.region is not None:
            check_region(self.region)

    def reads(self, vision_depth: int) -> Reads:
        return Reads() if self.region is None else Reads(vision=(VisionRead(-1),))

    def select(self, picture: Picture, stage: Stage) -> Selection:
        budget = total_budget(stage.keep_ratio, picture.tokens)
        generator = torch.Generator().manual_seed(self.seed + picture.fingerprint)
        order = torch.randperm(picture.tokens, generator=generator)
        if self.region is None:
            kept = order[:budget].sort().values
            return Selection(kept, picture.count_per_tile(kept))
        budgets = tile_budgets(region_shares(picture, self.region).tolist(), picture.sizes, budget)
        return Selection(keep_best(order.to(picture.saliency.device), picture.sizes, budgets), budgets)
