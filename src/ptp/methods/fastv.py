"""FastV (arXiv 2403.06764): the tokens that the prompt's last token attends to, after two layers."""

from dataclasses import dataclass

from ..pruner import Stage
from ..runtime import Picture, Reads, TextProbe
from ..selection import Selection, keep_best, total_budget
from .layers import PrunesAtLayer


@dataclass(frozen=True, kw_only=True)
class FastVPruner(PrunesAtLayer):
    """Keeps the visual tokens that get most attention in the layer below `prune_layer`.

    Rule (section 4): after layer K, rank by attention received, averaged over heads, and drop the lowest. As in the
    authors' code the attention is that of the prompt's last token; the paper's text averages over all tokens.

    Attributes:
        prune_layer: K; the paper recommends 2.
    """

    prune_layer: int = 2

    def reads(self, vision_depth: int) -> Reads:
        return Reads(probe=TextProbe("last"))

    def select(self, picture: Picture, stage: Stage) -> Selection:
        scores = picture.text_attention
        kept = keep_best(scores, [picture.tokens], [total_budget(stage.keep_ratio, picture.tokens)])
        return Selection(kept, picture.count_per_tile(kept), {"instruction": scores} if self.record_scores else {})
