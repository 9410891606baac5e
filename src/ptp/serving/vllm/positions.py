"""Every token keeps the position that it has in the unpruned prompt.

The engine asks for the positions of a prompt when it comes in: the text behind a picture has its own at once. Which tokens of a
picture stay is known once it is encoded, and may be known from an earlier request: their positions, less those that the engine
was told, travel with their features, as two more numbers of each, and come off where these are put among the words.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BASE = 256
"""Numbers below it are exact in bfloat16, and in half precision."""
DIGITS = 2
LARGEST = BASE**DIGITS
"""Places below this can be written."""


@dataclass(frozen=True)
class Gap:
    """A pruned picture in a prompt.

    Attributes:
        end: Where its last visual token ends, in the pruned prompt. missing: How many tokens left.
    """

    end: int
    missing: int


def text_positions(length: int, gaps: Sequence[Gap]) -> tuple[Tensor, int]:
    """(length,) int64 positions of a pruned prompt, and what to add to those of the tokens that follow.

    The tokens of a picture count on from its first: `shifts` tells the rest.
    """
    positions = torch.arange(length)
    for gap in gaps:
        positions[gap.end :] += gap.missing
    return positions, sum(gap.missing for gap in gaps)


def shifts(kept: Tensor) -> Tensor:
    """(K,) int64, how much farther each kept token of a picture is from its first place than in the pruned prompt.

    Args:
        kept: (K,) ascending places among the picture's tokens.
    """
    return kept - torch.arange(len(kept), device=kept.device)


def with_shifts(features: Tensor, shift: Tensor) -> Tensor:
    """(K, D + 2) of (K, D) features and (K,) shifts."""
    digits = torch.stack([shift // BASE, shift % BASE], dim=1)
    return torch.cat([features, digits.to(features)], dim=1)


def split_shifts(rows: Tensor, width: int) -> tuple[Tensor, Tensor | None]:
    """The (K, width) features and the (K,) int64 shifts of what `with_shifts` made; None for rows without."""
    if rows.shape[1] == width:
        return rows, None
    digits = rows[:, width:].long()
    return rows[:, :width], digits[:, 0] * BASE + digits[:, 1]
