"""DeFT (arXiv 2609.34861): vision prunes with a reserve before the language model, text selects again at half depth."""

from dataclasses import dataclass

from ..pruner import Stage
from ..runtime import Picture, Reads, TextProbe, VisionRead
from ..selection import Selection, even_budgets, keep_best, keep_best_among, total_budget
from .layers import ReadsVisionLayer


@dataclass(frozen=True, kw_only=True)
class DeFTPruner(ReadsVisionLayer):
    """Two stages: by [CLS] attention before the language model, with a reserve; by the instruction at half depth.

    Our reading of the published description, no code being available: the first stage keeps `1 + reserve` times
    `keep_ratio` by [CLS] attention, tile by tile; the second keeps `keep_ratio` of the picture by the strongest attention
    of any instruction token, averaged over heads.

    Attributes:
        reserve: Tokens that the second stage may choose from, beyond those it keeps, as a share of these.
    """

    reserve: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.reserve < float("inf"):
            raise ValueError(
                f"reserve must be a non-negative number, got {self.reserve}. 0.5 keeps half as many more at first."
            )

    def stages(self, layers: int) -> tuple[Stage, ...]:
        first = Stage(0, min(1.0, (1 + self.reserve) * self.keep_ratio))
        return (first, Stage(layers // 2, self.keep_ratio)) if layers > 1 else (first,)

    def reads(self, vision_depth: int) -> Reads:
        return Reads(vision=(VisionRead(self.vision_layer),), probe=TextProbe("instruction"))

    def select(self, picture: Picture, stage: Stage) -> Selection:
        total = total_budget(stage.keep_ratio, picture.tokens)
        if stage.layer == 0:
            name, scores = "token", picture.saliency
            kept = keep_best(scores, picture.sizes, even_budgets(picture.sizes, total))
        else:
            name, scores = "instruction", picture.text_attention
            kept = keep_best_among(scores, picture.alive, total)
        return Selection(kept, picture.count_per_tile(kept), {name: scores} if self.record_scores else {})
