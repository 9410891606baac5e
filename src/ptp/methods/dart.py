"""DART (arXiv 2502.11494): a few pivots, and the tokens that duplicate them least."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..pruner import Stage
from ..runtime import Picture, Reads, TextProbe
from ..selection import Selection, total_budget
from .layers import PrunesAtLayer


@dataclass(frozen=True, kw_only=True)
class DARTPruner(PrunesAtLayer):
    """Keeps pivots among the visual tokens and, for each of them and of some text tokens, the tokens least similar to it.

    Rule (section 4; `get_retained_image_token` of llava/model/language_model/modeling_llama_self.py in github ZichenWen1/DART,
    read in its fork xqy1111111/DART at d6a5af6): at layer K = 2, pivots are the 4 visual and the 4 text tokens whose keys in
    layer K - 1, **after rotary positions**, have the largest L1 norm; text is all that is behind the picture. Each pivot in
    turn adds int(budget / 8) visual tokens: those of lowest cosine to it among the ones not chosen yet, of the states as **the
    norm behind the last layer** makes them. Visual pivots are kept on top.

    Deviations: theirs keeps 8 int(budget / 8) + 4 tokens. Here the budget is met: the visual pivots are in it, and what is left
    is shared evenly, later pivots taking what does not divide; where it is smaller than `pivots`, only they are kept. Their
    pivots come in the order of a Python set: here in the order of the prompt. Text is behind the last picture of a prompt.
    In a padded batch that goes on from a KV cache, positions count from the call's
    first token.

    Attributes:
        pivots: Visual tokens among them. text_pivots: Text tokens.
    """

    prune_layer: int = 2
    pivots: int = 4
    text_pivots: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("pivots", 1), ("text_pivots", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be a whole number from {least} up, got {value!r}. The authors take 4.")

    def reads(self, vision_depth: int) -> Reads:
        return Reads(probe=TextProbe("behind"))

    def select(self, picture: Picture, stage: Stage) -> Selection:
        total = total_budget(stage.keep_ratio, picture.tokens)
        features, text = (F.normalize(picture.normed(part), dim=-1) for part in (picture.states, picture.text_states))
        pivots = strongest(picture.keys, min(self.pivots, total)).to(features.device)
        asked = torch.cat([features[pivots], text[strongest(picture.text_keys, self.text_pivots).to(text.device)]])
        free = torch.ones(picture.tokens, dtype=torch.bool, device=features.device)
        free[pivots] = False
        for number, row in enumerate(asked @ features.T):
            share = (total - len(pivots) + number) // len(asked)  # the shares sum to what is left
            free[row.masked_fill(~free, torch.inf).argsort(stable=True)[:share]] = False
        kept = (~free).nonzero()[:, 0]
        return Selection(kept, picture.count_per_tile(kept))


def strongest(keys: torch.Tensor, count: int) -> torch.Tensor:
    """(min(count, n),) ascending indices of the keys (n, D) of largest L1 norm."""
    return keys.abs().sum(dim=-1).argsort(descending=True, stable=True)[:count].sort().values
