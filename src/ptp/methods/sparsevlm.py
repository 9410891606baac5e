"""SparseVLM (arXiv 2410.04417): text tokens that see the picture rate its tokens, in several layers."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from ..clustering import density_peaks
from ..pruner import Pruner, Stage
from ..runtime import Picture, Reads, TextProbe
from ..selection import Selection, averages, check_share, keep_best_among

DEPTHS = (3, 7, 16)
"""Tokens leave behind layers 2, 6 and 15 of 32."""
SCHEDULES = ((0, 0, 0), (66, 30, 17), (303, 110, 36), (300, 200, 110), (576, 576, 576))
"""Of 576 tokens, what each drop leaves: the authors' schedules for an average of 64, 128 and 192, between none and all."""


@dataclass(frozen=True, kw_only=True)
class SparseVLMPruner(Pruner):
    """Text raters score the visual tokens in three layers; each drop keeps the best and recycles some of the others.

    Rule (section 3; `LlamaDynamicvitModel.forward` in llava/model/language_model/modelling_sparse_llama.py, score.py and
    utils.py of github Gumpest/SparseVLMs): raters are chosen once, from what the language model is given, among all text behind
    the pictures, template included: those whose likeness to the picture, softmax over the text of the products of visual and
    text embeddings averaged over visual tokens, is above the mean. A visual token's score is the mean attention that the
    raters pay it, averaged over heads, in layers 2, 6 and 15 of 32; tokens leave behind them. Of the D that leave the
    int(0.3 D) + 1 best form a tenth as many clusters, plus one, by density peaks (`clustering.density_peaks`), which go on as
    their means.

    Deviations: `keep_ratio` is what the last drop leaves; counts are interpolated between the authors' schedules (at 110,
    36 and 17 of 576 they are theirs). Clusters count in the budget and stand where their centres are; theirs come on top,
    behind the picture. Positions are original, theirs numbered anew. Where no text is above the mean, all of it rates.

    Attributes:
        recycle: Share of the dropped tokens that are recycled; 0 merges nothing.
    """

    recycle: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("recycle", self.recycle)

    def stages(self, layers: int) -> tuple[Stage, ...]:
        last = [counts[-1] / 576 for counts in SCHEDULES]
        shares = [np.interp(self.keep_ratio, last, [c[n] / 576 for c in SCHEDULES]) for n in range(2)]
        places = [min(layers - 1, math.ceil(layers * depth / 32)) for depth in DEPTHS]
        found = dict(zip(places, [*map(float, shares), self.keep_ratio], strict=True))  # of drops in one layer the last
        return tuple(Stage(layer, share) for layer, share in found.items())

    def reads(self, vision_depth: int) -> Reads:
        return Reads(probe=TextProbe("behind", reduce="mean"), inputs=True)

    def select(self, picture: Picture, stage: Stage) -> Selection:
        likeness = (picture.inputs @ picture.text_inputs.T).softmax(dim=-1).mean(dim=0)  # (R,)
        raters = likeness > likeness.mean()
        scores = picture.attention_from(raters if bool(raters.any()) else None)
        alive, budget = picture.alive.to(scores.device), min(stage.budget(picture.tokens), len(picture.alive))
        clusters = self._clusters(len(alive), budget)
        kept = keep_best_among(scores, alive, budget - clusters)
        shown = {"instruction": scores} if self.record_scores else {}
        if not clusters:
            return Selection(kept, picture.count_per_tile(kept), shown)
        dropped = alive[~torch.isin(alive, kept)]
        count = min(int(self.recycle * len(dropped)) + 1, len(dropped))
        recycled = keep_best_among(scores, dropped, count)
        states = picture.states
        features = states[torch.searchsorted(alive, recycled).to(states.device)]
        centers = recycled[density_peaks(features, clusters).to(recycled.device)]
        groups = torch.full((picture.tokens,), -1, device=scores.device)
        groups[kept], groups[recycled] = kept, centers
        kept = groups.unique()[1:]
        return Selection(kept, picture.count_per_tile(kept), shown, averages(groups, kept))

    def _clusters(self, alive: int, budget: int) -> int:
        """How many of a budget are clusters, so that they are as many as the authors make of what leaves."""
        if self.recycle == 0 or budget == alive:
            return 0
        wanted = (int(int(self.recycle * (alive - budget + count) + 1) / 10) + 1 for count in range(1, budget))
        return next((count for count, need in enumerate(wanted, 1) if need <= count), 0)
