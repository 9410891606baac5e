"""Random selection: the baseline that any method must beat."""

from dataclasses import dataclass

import torch

from ..pruner import Pruner, Stage
from ..runtime import Picture
from ..selection import Selection, total_budget


@dataclass(frozen=True, kw_only=True)
class RandomPruner(Pruner):
    """Keeps a uniformly random subset of each picture's visual tokens.

    Attributes:
        prune_layer: Language-model layer whose input loses tokens; 0 is before the language model.
        seed: Same seed, same picture size, same subset.
    """

    prune_layer: int = 2
    seed: int = 0

    @property
    def stages(self) -> tuple[Stage, ...]:
        return (Stage(self.prune_layer, self.keep_ratio),)

    def select(self, picture: Picture, stage: Stage) -> Selection:
        budget = total_budget(stage.keep_ratio, picture.tokens)
        generator = torch.Generator().manual_seed(self.seed)
        kept = torch.randperm(picture.tokens, generator=generator)[:budget].sort().values
        return Selection(kept, picture.count_per_tile(kept))
