"""PyramidDrop (arXiv 2410.17247): fewer visual tokens from stage to stage of the language model."""

from dataclasses import dataclass

from ..pruner import Pruner, Stage
from ..runtime import Picture, Reads, TextProbe
from ..selection import Selection, keep_best_among, total_budget


@dataclass(frozen=True, kw_only=True)
class PyramidDropPruner(Pruner):
    """Drops the same share of the remaining tokens at 1/4, 1/2 and 3/4 of the language model's depth.

    Rule (section 3): the layers are parted into four stages; at the end of each but the last, visual tokens are ranked by
    the attention of the prompt's last token, averaged over heads, and the top share stays. `keep_ratio` is what the
    last stage has; each drop keeps its cube root (the paper drops half each time: keep_ratio 1/8).
    """

    def stages(self, layers: int) -> tuple[Stage, ...]:
        places = sorted({max(1, layers * part // 4) for part in (1, 2, 3)})
        return tuple(Stage(layer, self.keep_ratio ** ((n + 1) / len(places))) for n, layer in enumerate(places))

    def reads(self, vision_depth: int) -> Reads:
        return Reads(probe=TextProbe("last"))

    def select(self, picture: Picture, stage: Stage) -> Selection:
        scores = picture.text_attention
        kept = keep_best_among(scores, picture.alive, total_budget(stage.keep_ratio, picture.tokens))
        return Selection(kept, picture.count_per_tile(kept), {"instruction": scores} if self.record_scores else {})
