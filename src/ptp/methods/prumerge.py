"""LLaVA-PruMerge (arXiv 2403.15388): the tokens that [CLS] attends to most, each with what is like it merged in."""

from dataclasses import dataclass

import torch

from ..pruner import Stage
from ..runtime import Picture, Reads, VisionRead
from ..selection import Selection, check_share, even_budgets, keep_best, total_budget
from .layers import ReadsVisionLayer


@dataclass(frozen=True, kw_only=True)
class PruMergePruner(ReadsVisionLayer):
    """Keeps the tokens that [CLS] attends to most and adds to each the k tokens with the most similar keys.

    Rule (Shang et al., arXiv 2403.15388, sections 3.2 to 3.4, algorithm 1; `token_prune_merge_advanced` and `..._plus` in
    llava/model/multimodal_encoder/clip_encoder.py of 42Shawn/LLaVA-PruMerge): a kept token becomes itself, with weight 1,
    plus the sum of its k nearest tokens, each times the attention that [CLS] pays it. Nearest is by cosine of the keys;
    kept tokens are neighbours, too, and clusters overlap. The paper speaks of an average; the code does not divide, nor do we.

    Deviations: the budget comes from `keep_ratio`, not from outliers by interquartile range; tiles share it evenly and merge
    alone. The sum of the pruned tokens, which the code appends, has no place in it. Attention and keys are means over heads
    and over a token's patches, of the last layer that feeds the language model (the paper's penultimate; the code: the next).
    Attention sums to 1 over a tile (patches may be joined; without [CLS] it is that received). Merging is after projection.

    Attributes:
        neighbours: k, tokens added to each kept one; at most all others of its tile. 0 prunes without merging.
        spatial: Share of a tile's budget kept at even steps. 0.5 is PruMerge+, except that its code adds to the budget.
    """

    neighbours: int = 32
    spatial: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.neighbours, bool) or not isinstance(self.neighbours, int) or self.neighbours < 0:
            raise ValueError(f"neighbours must be a number of tokens from 0 up, got {self.neighbours!r}. The paper takes 32.")
        check_share("spatial", self.spatial)

    def reads(self, vision_depth: int) -> Reads:
        return Reads(vision=(VisionRead(self.vision_layer, keys=True),))

    def select(self, picture: Picture, stage: Stage) -> Selection:
        scores, sizes, keys = picture.saliency, picture.sizes, picture.vision[0].keys
        keys = torch.nn.functional.normalize(keys, dim=1)
        budgets = even_budgets(sizes, total_budget(stage.keep_ratio, picture.tokens))
        spread = [round(self.spatial * budget) for budget in budgets]
        kept = torch.zeros_like(scores, dtype=torch.bool)
        kept[keep_best(scores, sizes, [budget - count for budget, count in zip(budgets, spread, strict=True)])] = True
        rows = []
        for own, paid, key, count in zip(kept.split(sizes), scores.split(sizes), keys.split(sizes), spread, strict=True):
            rest = (~own).nonzero().flatten()
            own[rest[torch.arange(count, device=rest.device) * len(rest) // max(count, 1)]] = True
            itself = torch.eye(len(own), device=own.device)[own]
            nearest = (key[own] @ key.T - 3 * itself).topk(min(self.neighbours, max(len(own) - 1, 0)), dim=1).indices
            rows.append(itself.scatter(1, nearest, (paid / paid.sum())[nearest]))
        shown = {"token": scores} if self.record_scores else {}
        return Selection(kept.nonzero().flatten(), budgets, shown, torch.block_diag(*rows))
