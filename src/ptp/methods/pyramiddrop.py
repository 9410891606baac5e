"""PyramidDrop (arXiv 2410.17247): fewer visual tokens from stage to stage of the language model."""

from dataclasses import dataclass

from ..pruner import Pruner, Stage
from ..runtime import Picture, Reads, TextProbe
from ..selection import Selection, keep_best_among


@dataclass(frozen=True, kw_only=True)
class PyramidDropPruner(Pruner):
    """Drops the same share of the remaining tokens at 1/4, 1/2 and 3/4 of the language model's depth.

    Rule (section 3; `pdrop_rank_drop` in llava/model/modeling_llama_pdrop.py of github Cooperx521/PyramidDrop): at the input of
    layers 8, 16 and 24 of 32, visual tokens are ranked by the attention of the prompt's last token, averaged over heads, from
    queries and keys that this layer makes of its input; the top share stays. `keep_ratio` is what the last stage has; each
    drop keeps its cube root (the paper drops half each time: keep_ratio 1/8).

    Deviations: kept tokens stay at their original positions, theirs are numbered anew after each drop; counts are rounded,
    theirs truncated.
    """

    def stages(self, layers: int) -> tuple[Stage, ...]:
        places = sorted({max(1, layers * part // 4) for part in (1, 2, 3)})
        return tuple(Stage(layer, self.keep_ratio ** ((n + 1) / len(places))) for n, layer in enumerate(places))

    def reads(self, vision_depth: int) -> Reads:
        return Reads(probe=TextProbe("last", layer="here"))

    def select(self, picture: Picture, stage: Stage) -> Selection:
        scores = picture.text_attention
        kept = keep_best_among(scores, picture.alive, stage.budget(picture.tokens))
        return Selection(kept, picture.count_per_tile(kept), {"instruction": scores} if self.record_scores else {})
