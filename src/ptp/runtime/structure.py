"""Structure tokens: what stands among a picture's visual tokens and is none of them, line ends and tile markers."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..adapters import Span


@dataclass(frozen=True)
class Structure:
    """The structure tokens of one picture.

    They part its visual tokens into runs: a row of a raster over all tiles, or a tile. Each belongs to one run.

    Attributes:
        places: (M,) int64 ascending, where they are in the prompt.
        runs: (M,) int64, the run that each belongs to.
        of_tokens: (N,) int64, the run that each visual token lies in.
        left: (M,) int64, the layer at whose input each left; -1 where it is still there.
    """

    places: Tensor
    runs: Tensor
    of_tokens: Tensor
    left: Tensor

    def leave(self, kept: Tensor, layer: int, asked: Tensor) -> Tensor:
        """(M',) places of those that leave at a layer, since their run keeps none of its visual tokens.

        Args:
            kept: (K,) indices into the picture's visual tokens.
            asked: (S,) bool, which of the prompt's tokens a method will ask again: they stay.
        """
        alive = torch.zeros(int(self.of_tokens.max()) + 1, dtype=torch.bool)
        alive[self.of_tokens[kept.cpu()]] = True
        leaving = ~alive[self.runs] & ~asked.cpu()[self.places] & (self.left < 0)
        self.left[leaving] = layer
        return self.places[leaving]


def structure_of(span: Span, spare: Tensor, follow: bool) -> Structure:
    """The structure tokens of a picture: all tokens between its first and its last visual token that are none, and those
    behind it that have the id of visual tokens (the last line's end).

    Args:
        spare: (S,) bool on the CPU, where the row has ids of visual tokens that are no picture's.
        follow: Whether they belong to the visual tokens before them (line ends); if not, to those behind (tile markers).
    """
    places, order = span.positions.cpu().sort()
    thumbnail = order >= len(order) - (span.layout.sizes[-1] if span.layout.thumbnail else 0)
    first, last = int(places[0]), int(places[-1])
    behind = spare[last + 1 :]
    end = last + 1 + (len(behind) if bool(behind.all()) else int((~behind).int().argmax()))
    own = torch.zeros(end - first, dtype=torch.bool)
    own[places - first] = True
    others = first + (~own).nonzero()[:, 0]
    parted = (places.diff() > 1) | (thumbnail[1:] != thumbnail[:-1])
    runs = torch.nn.functional.pad(parted.long().cumsum(0), (1, 0))  # of the visual tokens in prompt order
    next_token = torch.searchsorted(places, others)
    nearest = next_token - 1 if follow else next_token.clamp_max(len(places) - 1)
    of_tokens = torch.empty_like(runs).scatter_(0, order, runs)
    return Structure(others, runs[nearest], of_tokens, torch.full_like(others, -1))
