"""DeFT (arXiv 2609.34861): vision prunes with a reserve before the language model, text selects again at half depth."""

from dataclasses import dataclass

from ..pruner import Pruner, Stage
from ..runtime import Picture, Reads, TextProbe, VisionRead
from ..selection import Selection, check_share, keep_best_among
from .layers import check_layer


@dataclass(frozen=True, kw_only=True)
class DeFTPruner(Pruner):
    """Two stages: by the encoder's attention before the language model, with a reserve; by that of all text at half depth.

    Rule (docs/METHOD.md, and `install_policy` in src/deft/runtime.py, of github kmc3661/DeFT): of N tokens K = max(1, round(
    keep_ratio N)) are wanted. The first stage keeps min(N, K + ceil(reserve (N - K))) by [CLS] attention, whatever their tile;
    without [CLS] by the attention that a patch receives in the last block but one. At the
    input of layer D // 2 of D the best K stay by the attention of layer D // 2 - 1, averaged over heads and over all text of
    the prompt, system and template included.

    Deviations: a large tile's received attention is that of 64 patches (`scoring.received_attention`), theirs of all. Theirs
    runs without a KV cache, ours compacts it.

    Attributes:
        reserve: Their alpha: the share of the tokens beyond K that the second stage may choose from.
        vision_layer: Vision layer whose attention is read; None is theirs, as above.
    """

    reserve: float = 0.2
    vision_layer: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("reserve", self.reserve)
        if self.vision_layer is not None:
            check_layer("vision_layer", self.vision_layer)

    def stages(self, layers: int) -> tuple[Stage, ...]:
        first = Stage(0, self.keep_ratio, self.reserve)
        return (first, Stage(layers // 2, self.keep_ratio)) if layers > 1 else (Stage(0, self.keep_ratio),)

    def reads(self, vision_depth: int) -> Reads:
        penultimate = -min(2, vision_depth)
        theirs = VisionRead(-1, layer_without_cls=penultimate)
        read = theirs if self.vision_layer is None else VisionRead(self.vision_layer)
        return Reads(vision=(read,), probe=TextProbe("all", reduce="mean"))

    def select(self, picture: Picture, stage: Stage) -> Selection:
        name, scores = ("token", picture.saliency) if stage.layer == 0 else ("instruction", picture.text_attention)
        kept = keep_best_among(scores, picture.alive, stage.budget(picture.tokens))
        return Selection(kept, picture.count_per_tile(kept), {name: scores} if self.record_scores else {})
