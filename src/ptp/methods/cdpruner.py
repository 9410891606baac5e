"""CDPruner (arXiv 2506.10967): tokens diverse among themselves, conditioned on the instruction."""

from dataclasses import dataclass

import torch.nn.functional as F

from ..greedy import keep_determinantal
from ..pruner import Pruner, Stage
from ..runtime import Picture, Reads, TextProbe
from ..scoring import minmax
from ..selection import Selection, total_budget


@dataclass(frozen=True, kw_only=True)
class CDPruner(Pruner):
    """Maximises the determinant of a similarity kernel weighted by relevance to the instruction.

    Rule (section 3): L = diag(r) S diag(r), S the cosine similarity of the visual tokens, r their relevance min-max scaled
    over the picture; the subset by greedy MAP inference of the determinantal point process. Before the language model.

    Deviation: there is no CLIP text tower, so relevance is the cosine similarity to the mean of the instruction's
    embeddings in the language model, and S is that of the visual tokens after the projector.
    """

    def reads(self, vision_depth: int) -> Reads:
        return Reads(probe=TextProbe("instruction"))

    def select(self, picture: Picture, stage: Stage) -> Selection:
        features, text = F.normalize(picture.states, dim=-1), picture.text_states
        relevance = minmax(features @ F.normalize(text.mean(dim=0), dim=0)) if len(text) else features.new_ones(len(features))
        relevance = relevance.clamp_min(1e-6)  # the least relevant token can still be chosen
        kept = keep_determinantal(features * relevance[:, None], total_budget(stage.keep_ratio, picture.tokens))
        return Selection(kept, picture.count_per_tile(kept), {"instruction": relevance} if self.record_scores else {})
