"""DivPrune (arXiv 2503.02175): the most diverse tokens."""

from dataclasses import dataclass

from ..greedy import keep_diverse
from ..pruner import Pruner, Stage
from ..runtime import Picture
from ..selection import Selection, total_budget


@dataclass(frozen=True, kw_only=True)
class DivPrunePruner(Pruner):
    """Keeps the subset whose closest pair is farthest apart: greedy max-min diversity over cosine distance.

    Rule (section 3.3): start with the token farthest from its nearest neighbour, then always add the token farthest from
    those chosen. Over the visual tokens of the whole picture after the projector, before the language model. (`DivPrune` of
    LLaVA/llava/model/llava_arch.py in github vbdi/divprune at 799e2d9.)

    Deviations: on LLaVA-1.6 the authors' candidates include the line ends, which here all stay and do not count; they compute
    in the model's dtype, we in float32. (From their released code, not rechecked.)
    """

    def select(self, picture: Picture, stage: Stage) -> Selection:
        kept = keep_diverse(picture.states, total_budget(stage.keep_ratio, picture.tokens))
        return Selection(kept, picture.count_per_tile(kept))
