"""Pyramid Token Pruning (arXiv 2509.15704): tile budgets, token saliency and instruction relevance in one selection."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from .. import scoring
from ..pruner import Stage
from ..runtime import Picture
from ..selection import Selection, check_share, keep_best, tile_budgets, total_budget
from .layers import PrunesAtLayer, ReadsVisionLayer
from .regions import check_region, region_shares

Relevance = Literal["attention", "similarity", "both"]
Scope = Literal["picture", "tile"]
CHOICES = {"relevance": get_args(Relevance), "normalize": get_args(Scope), "budgets": get_args(Scope)}


@dataclass(frozen=True, kw_only=True)
class PyramidPruner(PrunesAtLayer, ReadsVisionLayer):
    """Keeps what is salient in the picture and what the instruction asks for, and nothing twice.

    The paper fixes the three levels, alpha = 0.5 and the maximum over instruction tokens; the other settings are our
    reconstruction, and `relevance`, `budgets="picture"` and `diversity` our extensions. The defaults are what measured best
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
        region: Source of the tile saliency: one of `methods.regions.REGIONS`.
        region_alpha: Weight in [0, 1] of the share of instruction relevance that falls on a tile, beside its visual
            saliency; None is `alpha`. Our extension; 0 is the published form.
        temperature: Softmax temperature of "cls_similarity"; attention shares are used as they are.
        budgets: What a tile's share decides: how many tokens the "tile" may keep; or, tokens of the whole "picture"
            competing for one budget, how much the scores of its tokens count.
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
    budgets: Scope = "picture"
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
        return cls(**{**paper, "budgets": "tile", "diversity": 0.0, **settings})

    @property
    def text_rows(self) -> Literal["instruction", "last"] | None:
        return "instruction" if self.alpha > 0 or self._weight_in_regions > 0 else None

    @property
    def _weight_in_regions(self) -> float:
        return self.alpha if self.region_alpha is None else self.region_alpha

    def select(self, picture: Picture, stage: Stage) -> Selection:
        sizes, total = picture.sizes, total_budget(stage.keep_ratio, picture.tokens)
        token, instruction = picture.attention, self.instruction(picture)
        parts = [(token, instruction)]
        if self.normalize == "tile":
            parts = [pair for pair in zip(token.split(sizes), instruction.split(sizes), strict=True) if len(pair[0])]
        fused = torch.cat([scoring.fuse(a, c, self.alpha) for a, c in parts])
        region = self.region_shares(picture, instruction)
        novelty = scoring.novelty(picture.states, fused, sizes) if self.diversity > 0 else None
        score = fused if novelty is None else fused * novelty.to(fused.device) ** self.diversity
        if self.budgets == "tile":
            budgets = tile_budgets(region.tolist(), sizes, total, self.thumbnail_keep)
            kept = keep_best(score, sizes, budgets)
        else:
            kept = self._keep_of_picture(picture, score * _weights(region, sizes), total)
            budgets = picture.count_per_tile(kept)
        if not self.record_scores:
            return Selection(kept, budgets)
        whole = torch.cat([region, region.new_ones(len(sizes) - len(region))])
        scores = {"region": whole, "token": token, "instruction": instruction, "fused": fused}
        return Selection(kept, budgets, scores if novelty is None else {**scores, "novelty": novelty})

    def instruction(self, picture: Picture) -> Tensor:
        """Relevance (N,) of each visual token to the instruction, at least 0; zero where no text is read."""
        if self.text_rows is None:
            return torch.zeros_like(picture.attention)
        source = self.relevance or ("attention" if self.prune_layer else "similarity")
        if source == "attention":
            return picture.relevance
        similarity = scoring.minmax(scoring.similarity_relevance(picture.states, picture.text_states))
        similarity = similarity.to(picture.attention.device)
        return similarity if source == "similarity" else (scoring.minmax(picture.relevance) + similarity) / 2

    def region_shares(self, picture: Picture, instruction: Tensor) -> Tensor:
        """Weights (tiles,) of the tiles without the thumbnail, summing to 1.

        Args:
            instruction: (N,) relevance of each token.
        """
        shares, weight = region_shares(picture, self.region, self.temperature), self._weight_in_regions
        if weight > 0 and picture.tiles > 1:
            relevance = torch.stack([part.sum() for part in instruction.split(picture.sizes)[: picture.tiles]])
            shares = (1 - weight) * shares + weight * scoring.region_weights(relevance, None)
        return shares

    def _keep_of_picture(self, picture: Picture, score: Tensor, total: int) -> Tensor:
        """The best tokens of the picture; the thumbnail apart only where `thumbnail_keep` gives it a share of its own."""
        if self.thumbnail_keep is None or not picture.thumbnail:
            return keep_best(score, [len(score)], [total])
        groups = [len(score) - picture.sizes[-1], picture.sizes[-1]]
        return keep_best(score, groups, tile_budgets([1.0], groups, total, self.thumbnail_keep))


def _weights(region: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """(N,) how much each token's score counts: its tile's share of the saliency over an even one; the thumbnail's is 1."""
    per_tile = torch.cat([region * len(region), region.new_ones(len(sizes) - len(region))])
    return per_tile.repeat_interleave(torch.tensor(sizes, device=region.device), output_size=sum(sizes))
