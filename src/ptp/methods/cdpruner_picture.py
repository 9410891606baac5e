"""CDPruner over the whole picture at once: ours, stronger than the released form."""

from dataclasses import dataclass

import torch.nn.functional as F

from ..greedy import keep_determinantal
from ..pruner import Pruner, Stage
from ..runtime import Picture, Reads, TextProbe
from ..scoring import minmax
from ..selection import Selection, total_budget


@dataclass(frozen=True, kw_only=True)
class CDPrunerPicture(Pruner):
    """Maximises the determinant of a similarity kernel weighted by relevance, over all tokens of the picture.

    Our form of CDPruner (arXiv 2506.10967, section 3), not its authors': `cdpruner` has their rule. Here all tiles compete in
    one determinantal point process, so that what several tiles show is kept once, and relevance is the cosine to the **mean**
    of the instruction's embeddings in the language model, in which a word with a large embedding counts for more. Before
    the language model.
    """

    def reads(self, vision_depth: int) -> Reads:
        return Reads(probe=TextProbe("instruction"))

    def select(self, picture: Picture, stage: Stage) -> Selection:
        features, text = F.normalize(picture.states, dim=-1), picture.text_states
        relevance = minmax(features @ F.normalize(text.mean(dim=0), dim=0)) if len(text) else features.new_ones(len(features))
        relevance = relevance.clamp_min(1e-6)  # the least relevant token can still be chosen
        kept = keep_determinantal(features * relevance[:, None], total_budget(stage.keep_ratio, picture.tokens))
        return Selection(kept, picture.count_per_tile(kept), {"instruction": relevance} if self.record_scores else {})
