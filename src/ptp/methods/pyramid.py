"""Pyramid Token Pruning (arXiv 2509.15704): tile budgets, token saliency and instruction relevance in one selection."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from .. import scoring
from ..pruner import Stage
from ..runtime import Picture, Reads, TextProbe, VisionRead
from ..selection import Selection, check_share, keep_best, tile_budgets, total_budget
from .layers import PrunesAtLayer, ReadsVisionLayer
from .region_saliency import check_region, region_shares

Relevance = Literal["attention", "similarity", "both"]
Scope = Literal["picture", "tile"]
CHOICES = {"relevance": get_args(Relevance), "normalize": get_args(Scope), "scope": get_args(Scope)}


@dataclass(frozen=True, kw_only=True)
class PyramidPruner(PrunesAtLayer, ReadsVisionLayer):
    """Keeps what is salient in the picture and what the instruction asks for, and nothing twice.

    The paper fixes the three levels, alpha = 0.5 and the maximum over instruction tokens; the other settings are our
    reconstruction, and `relevance`, `scope="picture"` and `diversity` our extensions. The defaults are what measured best
    (docs/results/ablation.md says where they are not, and why); `published` is the paper's form.

    Attributes:
        alpha: Weight of the instruction in [0, 1]. 0 is purely visual and reads no text: the choice when many questions
            follow one picture; 1 is purely instruction-guided.
        prune_layer: Tokens leave at the input of this language-model layer; 0 is before the language model.
        relevance: What the instruction says of a visual token: the "attention" its words pay it, in the layer below
            `prune_layer` (0: by a probe of layer 0); the cosine "similarity" of its hidden state with theirs; "both", the
            mean of the two, each rescaled to [0, 1]. Of several words the strongest counts. None is "similarity" before
            the language model, where words have attended to nothing yet, and "attention" inside, where their states
            have moved away from those of what they name.
        region: Source of the tile saliency: one of `methods.region_saliency.REGIONS`.
        region_alpha: Weight in [0, 1] of the share of instruction relevance that falls on a tile, beside its visual
            saliency; None is `alpha`. Our extension; 0 is the published form.
        temperature: Softmax temperature of "cls_similarity"; attention shares are used as they are.
        scope: Where tokens compete, and so what a tile's share decides: in the "tile", how many it may keep; in the whole
            "picture", for one budget, how much the scores of its tokens count.
        thumbnail_keep: Share of the thumbnail's tokens kept, in [0, 1]. None: `keep_ratio`, or, where the tokens of the
            picture compete, whatever they win.
        diversity: Exponent, at least 0, of a token's novelty in its score: how little of it is known from better tokens
            near it (`scoring.novelty`). 0 lets like tokens stay together.
        normalize: Min-max the two token scores over the "picture" or over each "tile".
        vision_layer: Vision layer whose attention is read; negative counts from the last.
    """

    alpha: float = 0.5
    relevance: Relevance | None = None
    region: str = "thumbnail_attention"
    region_alpha: float | None = None
    temperature: float = 0.3
    scope: Scope = "picture"
    thumbnail_keep: float | None = None
    diversity: float = 0.5
    normalize: Scope = "picture"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("alpha", "region_alpha", "thumbnail_keep"):
            value = getattr(self, name)
            if value is not None:
                check_share(name, value)
        check_region(self.region)
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature must be a positive number, got {self.temperature}. Smaller is sharper; try 0.3.")
        if not 0 <= self.diversity < float("inf"):
            raise ValueError(f"diversity must be a number from 0 up, got {self.diversity}. 0 turns it off; try 0.5.")
        for name, choices in CHOICES.items():
            if (value := getattr(self, name)) not in choices and (value is not None or name != "relevance"):
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}. Choose one of these.")

    @classmethod
    def published(cls, **settings: Any) -> "PyramidPruner":
        """The method as published: by attention alone, at layer 2, and vision alone decides the tile budgets, by [CLS]
        similarity (probably: the paper's text leaves the layer and the source open).

        Args:
            settings: Any setting, over these: keep_ratio, prune_layer, ...

        Raises:
            ValueError: a setting is out of its range.

        Source: arXiv 2509.15704, section III.
        """
        paper = {"alpha": 0.5, "prune_layer": 2, "relevance": "attention", "region": "cls_similarity", "region_alpha": 0.0}
        return cls(**{**paper, "scope": "tile", "diversity": 0.0, **settings})

    def reads(self, vision_depth: int) -> Reads:
        return Reads(vision=(VisionRead(self.vision_layer),), probe=TextProbe("instruction") if self._reads_text else None)

    @property
    def _reads_text(self) -> bool:
        return self.alpha > 0 or self._weight_in_regions > 0

    @property
    def _weight_in_regions(self) -> float:
        return self.alpha if self.region_alpha is None else self.region_alpha

    def select(self, picture: Picture, stage: Stage) -> Selection:
        scores = self.score(picture)
        kept = self._choose(picture, scores, total_budget(stage.keep_ratio, picture.tokens))
        return Selection(kept, picture.count_per_tile(kept), scores.to_dict(len(picture.sizes)) if self.record_scores else {})

    def score(self, picture: Picture) -> "PyramidScores":
        """The three levels, and what they make of each token."""
        sizes, token, relevance = picture.sizes, picture.saliency, self._relevance(picture)
        parts = [(token, relevance)]
        if self.normalize == "tile":
            parts = [pair for pair in zip(token.split(sizes), relevance.split(sizes), strict=True) if len(pair[0])]
        fused = torch.cat([scoring.fuse(a, c, self.alpha) for a, c in parts])
        novelty = scoring.novelty(picture.states, fused, sizes).to(fused.device) if self.diversity > 0 else None
        return PyramidScores(self._region(picture, relevance), token, relevance, fused, novelty)

    def _relevance(self, picture: Picture) -> Tensor:
        """(N,) of each visual token to the instruction, at least 0; zero where no text is read."""
        if not self._reads_text:
            return torch.zeros_like(picture.saliency)
        source = self.relevance or ("attention" if self.prune_layer else "similarity")
        if source == "attention":
            return picture.text_attention
        similarity = scoring.minmax(scoring.similarity_relevance(picture.states, picture.text_states))
        similarity = similarity.to(picture.saliency.device)
        return similarity if source == "similarity" else (scoring.minmax(picture.text_attention) + similarity) / 2

    def _region(self, picture: Picture, relevance: Tensor) -> Tensor:
        """(tiles,) weights of the tiles without the thumbnail, summing to 1."""
        shares, weight = region_shares(picture, self.region, self.temperature), self._weight_in_regions
        if weight > 0 and picture.tiles > 1:
            asked_for = torch.stack([part.sum() for part in relevance.split(picture.sizes)[: picture.tiles]])
            shares = (1 - weight) * shares + weight * scoring.region_weights(asked_for, None)
        return shares

    def _choose(self, picture: Picture, scores: "PyramidScores", total: int) -> Tensor:
        """(K,) ascending indices: in each tile's budget, or the best of the picture."""
        sizes, best = picture.sizes, scores.fused
        if scores.novelty is not None:
            best = best * scores.novelty**self.diversity
        if self.scope == "tile":
            return keep_best(best, sizes, tile_budgets(scores.region.tolist(), sizes, total, self.thumbnail_keep))
        best = best * _weights(scores.region, sizes)
        if self.thumbnail_keep is None or not picture.thumbnail:
            return keep_best(best, [len(best)], [total])
        groups = [len(best) - sizes[-1], sizes[-1]]  # the thumbnail has a share of its own
        return keep_best(best, groups, tile_budgets([1.0], groups, total, self.thumbnail_keep))


@dataclass(frozen=True)
class PyramidScores:
    """What `PyramidPruner` makes of a picture, float32.

    Attributes:
        region: (tiles,) weights of the tiles without the thumbnail, summing to 1.
        token: (N,) saliency. relevance: (N,) to the instruction. fused: (N,) in [0, 1], both.
        novelty: (N,) in (0, 1]; None where it does not count.
    """

    region: Tensor
    token: Tensor
    relevance: Tensor
    fused: Tensor
    novelty: Tensor | None

    def to_dict(self, tiles: int) -> dict[str, Tensor]:
        """As the trace has them, for `tiles` tiles with the thumbnail, whose region weight is 1."""
        region = torch.cat([self.region, self.region.new_ones(tiles - len(self.region))])
        found = {"region": region, "token": self.token, "instruction": self.relevance, "fused": self.fused}
        return found if self.novelty is None else {**found, "novelty": self.novelty}


def _weights(region: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """(N,) how much each token's score counts: its tile's share of the saliency over an even one; the thumbnail's is 1."""
    per_tile = torch.cat([region * len(region), region.new_ones(len(sizes) - len(region))])
    return per_tile.repeat_interleave(torch.tensor(sizes, device=region.device), output_size=sum(sizes))
