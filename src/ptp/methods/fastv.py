"""FastV (arXiv 2403.06764): the tokens that the prompt's last token attends to, after two layers."""

from dataclasses import dataclass

from ..pruner import Stage
from ..runtime import Picture, Reads, TextProbe
from ..selection import Selection, keep_best
from .layers import PrunesAtLayer


@dataclass(frozen=True, kw_only=True)
class FastVPruner(PrunesAtLayer):
    """Keeps the visual tokens that get most attention in the layer below `prune_layer` (at 0: in layer 0).

    Rule (section 4; `LlamaModel.forward` in src/transformers/src/transformers/models/llama/fastv_forward.py of github
    pkunlp-icler/FastV): after layer K, rank by the attention of the prompt's last token, averaged over heads, and keep the
    best. The paper's text averages over all tokens; its code, and this, take the last.

    Attributes:
        prune_layer: K; the paper recommends 2.
    """

    prune_layer: int = 2

    def reads(self, vision_depth: int) -> Reads:
        return Reads(probe=TextProbe("last"))

    def select(self, picture: Picture, stage: Stage) -> Selection:
        scores = picture.text_attention
        kept = keep_best(scores, [picture.tokens], [stage.budget(picture.tokens)])
        return Selection(kept, picture.count_per_tile(kept), {"instruction": scores} if self.record_scores else {})
