"""HiRED (arXiv 2408.10945): the thumbnail's early attention shares the budget over the tiles."""

from dataclasses import dataclass

from ..pruner import Stage
from ..runtime import Picture, Reads, VisionRead
from ..selection import Selection, check_share, keep_best, tile_budgets, total_budget
from .layers import ReadsVisionLayer
from .region_saliency import overview_attention


@dataclass(frozen=True, kw_only=True)
class HiREDPruner(ReadsVisionLayer):
    """Tiles with more visual content keep more; in each, the tokens that [CLS] attends to most.

    Rule (section 4): the thumbnail gets the share `thumbnail_share` of the budget; each tile gets of the rest the share of the
    thumbnail's [CLS] attention in an early vision layer that falls on it; tokens by [CLS] attention in the last layer.
    Before the language model.

    Deviations: attention is averaged over heads, as everywhere here; what a tile cannot take goes to the others; where a
    model has no thumbnail, the early layer's own attention shares the budget.

    Attributes:
        thumbnail_share: Share of the budget that the thumbnail gets, the paper's alpha; the default is that of the authors'
            scripts.
        early_layer: Vision layer that decides about tiles; `vision_layer` decides about tokens.
    """

    thumbnail_share: float = 0.5
    early_layer: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("thumbnail_share", self.thumbnail_share)

    def reads(self, vision_depth: int) -> Reads:
        return Reads(vision=(VisionRead(self.vision_layer), VisionRead(self.early_layer)))

    def select(self, picture: Picture, stage: Stage) -> Selection:
        scores = picture.saliency
        total = total_budget(stage.keep_ratio, picture.tokens)
        content = overview_attention(picture, picture.vision[1])
        own = min(1.0, self.thumbnail_share * total / picture.sizes[-1])
        budgets = tile_budgets(content.tolist(), picture.sizes, total, own)
        kept = keep_best(scores, picture.sizes, budgets)
        return Selection(kept, budgets, {"token": scores} if self.record_scores else {})
