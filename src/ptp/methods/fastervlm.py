"""FasterVLM (arXiv 2412.01818v1): the tokens that [CLS] attends to most."""

from dataclasses import dataclass

from ..pruner import Stage
from ..runtime import Picture
from ..selection import Selection, even_budgets, keep_best, total_budget
from .layers import ReadsVisionLayer


@dataclass(frozen=True, kw_only=True)
class FasterVLMPruner(ReadsVisionLayer):
    """Each tile keeps the tokens that its [CLS] attends to most; all tiles keep the same share.

    Rule: rank by [CLS] attention in the vision encoder, averaged over heads, and keep the top (section 3.2;
    `encode_images` of llava/model/llava_arch.py in github Theia-4869/FasterVLM at f5d5f12, in the layer that feeds the
    projector, the same count in every tile). Before the language model. A high-resolution
    picture is pruned tile by tile, as its encoder sees it.
    """

    def select(self, picture: Picture, stage: Stage) -> Selection:
        scores = picture.saliency
        budgets = even_budgets(picture.sizes, total_budget(stage.keep_ratio, picture.tokens))
        kept = keep_best(scores, picture.sizes, budgets)
        return Selection(kept, budgets, {"token": scores} if self.record_scores else {})
