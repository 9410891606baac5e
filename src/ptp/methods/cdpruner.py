"""CDPruner (arXiv 2506.10967): tokens diverse among themselves, conditioned on the instruction; tile by tile, as released."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..greedy import keep_determinantal
from ..pruner import Pruner, Stage
from ..runtime import Picture, Reads, TextProbe
from ..selection import Selection, even_budgets, total_budget

LEAST = 1e-6
"""Added to relevance, as in the authors' code: the least relevant token can still be chosen."""


@dataclass(frozen=True, kw_only=True)
class CDPruner(Pruner):
    """Maximises, tile by tile, the determinant of a similarity kernel weighted by relevance to the instruction.

    Rule (section 3; `encode_images` of llava/model/llava_arch.py in github Theia-4869/CDPruner at 9541616): in each tile
    L = diag(r) S diag(r), S the cosine similarity of the visual tokens after the projector; all tiles keep the same count, by
    greedy MAP inference of the determinantal point process. The relevance r is the **mean over the text vectors of the
    cosines**, min-max scaled over all tiles. Before the language model.

    Deviations: the authors compare with CLIP's text tower, of which they turn the sign around, and have no code for models
    without one. Here text vectors are the instruction's embeddings in the language model, with the sign as it is, as in
    OpenVINO's port (src/cpp/src/visual_language/cdpruner in github openvinotoolkit/openvino.genai); that port blends L with S
    in equal parts, which the authors' code does not. `cdpruner_picture` chooses over the whole picture.
    """

    def reads(self, vision_depth: int) -> Reads:
        return Reads(probe=TextProbe("instruction"))

    def select(self, picture: Picture, stage: Stage) -> Selection:
        features = F.normalize(picture.states, dim=-1)
        text = F.normalize(picture.text_states, dim=-1)
        relevance = rescaled(features @ text.mean(dim=0)) if len(text) else features.new_ones(len(features))
        budgets = even_budgets(picture.sizes, total_budget(stage.keep_ratio, picture.tokens))
        weighted, kept, start = features * relevance[:, None], list[Tensor](), 0
        for tile, budget in zip(weighted.split(picture.sizes), budgets, strict=True):
            kept += [start + keep_determinantal(tile, budget)] if budget else []
            start += len(tile)
        return Selection(torch.cat(kept), budgets, {"instruction": relevance} if self.record_scores else {})


def rescaled(relevance: Tensor) -> Tensor:
    """(N,) relevance from just above 0 to just above 1: (r - min + LEAST) / (max - min)."""
    low, high = relevance.min(), relevance.max()
    return (relevance - low + LEAST) / (high - low).clamp_min(LEAST)
