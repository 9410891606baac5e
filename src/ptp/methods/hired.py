"""HiRED (arXiv 2408.10945): the thumbnail's early attention shares the budget over the tiles."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..pruner import Stage
from ..runtime import Picture, Reads, VisionRead
from ..selection import Selection, check_share, keep_best, tile_budgets, total_budget
from .layers import ReadsVisionLayer
from .region_saliency import overview_attention


@dataclass(frozen=True, kw_only=True)
class HiREDPruner(ReadsVisionLayer):
    """Tiles with more visual content keep more; in each, the tokens that [CLS] attends to most.

    Rule (section 4; `HiRED_token_selection` and `HiRED_sub_img_budgets` of transformers/src/transformers/models/llava_next/
    modeling_llava_next.py in github hasanar1f/HiRED at 502d6dd): the thumbnail gets the share alpha of the budget, at most all
    its tokens. Of its patches the share 1 - alpha that [CLS] attends to most in layer 0 are **counted** on each tile, and the
    tiles get of the rest in proportion. Tokens by [CLS] attention in layer 22 of 24, the one that feeds the projector: that
    is the default here. Both are over all heads. Before the language model.

    Deviations: the code counts in stretches of the flattened map (as many as there are tiles), which are strips of the picture
    and not its tiles: here true areas, a patch on a border split. It cuts each count down to a whole number, and gives a
    picture of one view alpha of its budget: here totals are exact, and what a tile cannot take goes to the others. It chooses
    before padding is cut off. Without a thumbnail the early layer's own attention is counted.

    Attributes:
        thumbnail_share: The authors' alpha; the default is that of their scripts.
        early_layer: Vision layer that decides about tiles; `vision_layer` decides about tokens.
        counted: Whether patches are counted; else the early attention itself is summed over each tile.
    """

    thumbnail_share: float = 0.5
    early_layer: int = 0
    counted: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("thumbnail_share", self.thumbnail_share)

    def reads(self, vision_depth: int) -> Reads:
        return Reads(vision=(VisionRead(self.vision_layer), VisionRead(self.early_layer)))

    def select(self, picture: Picture, stage: Stage) -> Selection:
        scores, early = picture.saliency, picture.vision[1]
        total = total_budget(stage.keep_ratio, picture.tokens)
        if self.counted and early.thumbnail is not None:
            early = replace(early, thumbnail=self._top(early.thumbnail))
        elif self.counted:
            early = replace(early, read_saliency=self._top(early.saliency))
        own = min(int(self.thumbnail_share * total), picture.sizes[-1]) / picture.sizes[-1]
        budgets = tile_budgets(overview_attention(picture, early).tolist(), picture.sizes, total, own)
        kept = keep_best(scores, picture.sizes, budgets)
        return Selection(kept, budgets, {"token": scores} if self.record_scores else {})

    def _top(self, attention: Tensor) -> Tensor:
        """1 for the patches that count, 0 for the others."""
        best = attention.argsort(descending=True, stable=True)[: int(len(attention) * (1 - self.thumbnail_share))]
        return torch.zeros_like(attention).index_fill_(0, best, 1.0)
