"""SparseVLM (arXiv 2410.04417): text tokens that see the picture rate its tokens, in several layers."""

import math
from dataclasses import dataclass

from ..pruner import Pruner, Stage
from ..runtime import Picture, Reads, TextProbe
from ..selection import Selection, keep_best_among, total_budget


@dataclass(frozen=True, kw_only=True)
class SparseVLMPruner(Pruner):
    """Text raters score the visual tokens in three layers; each drop keeps the best.

    Rule (section 3): raters are the text tokens whose likeness to the picture, softmax over the text of the products of
    visual and text states averaged over visual tokens, is at least the mean. A visual token's score is the mean
    attention that the raters pay it, averaged over heads. Layers 2, 6 and 15 of 32, in proportion.

    Deviations: `keep_ratio` is reached in equal steps instead of by the rank of the attention map; raters are chosen
    from the states at each stage; dropped tokens are not recycled.
    """

    def stages(self, layers: int) -> tuple[Stage, ...]:
        places = sorted({min(layers - 1, math.ceil(layers * part / 32)) for part in (2, 6, 15)})
        return tuple(Stage(layer, self.keep_ratio ** ((n + 1) / len(places))) for n, layer in enumerate(places))

    def reads(self, vision_depth: int) -> Reads:
        return Reads(probe=TextProbe("instruction", reduce="mean"))

    def select(self, picture: Picture, stage: Stage) -> Selection:
        likeness = (picture.states @ picture.text_states.T).softmax(dim=-1).mean(dim=0)  # (R,)
        scores = picture.attention_from(likeness >= likeness.mean())
        kept = keep_best_among(scores, picture.alive, total_budget(stage.keep_ratio, picture.tokens))
        return Selection(kept, picture.count_per_tile(kept), {"instruction": scores} if self.record_scores else {})
