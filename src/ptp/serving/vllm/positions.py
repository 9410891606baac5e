"""Every token keeps the position that it has in the unpruned prompt.

The engine asks for the positions of a prompt when it comes in: the text behind a picture has its own at once. Which tokens of a
picture stay is known once it is encoded, and may be known from an earlier request: their positions, less those that the engine
was told, travel with their features, as two more numbers for each axis, and come off where these are put among the words.
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
class Shown:
    """A pruned picture in a prompt.

    Attributes:
        start, end: Where its visual tokens begin and end, in the pruned prompt.
        length: By how much positions move on over it, unpruned: its tokens, or, in rows and columns, the longer side.
        flat: Whether its tokens stand at one position each; if not, all begin at its first (M-RoPE).
    """

    start: int
    end: int
    length: int
    flat: bool = True


def text_positions(length: int, pictures: Sequence[Shown]) -> tuple[Tensor, int]:
    """(length,) int64 positions of a pruned prompt, and what to add to those of the tokens that follow.

    The tokens of a picture count on from its first, or stay there: `shifts` tells the rest.
    """
    positions, more = torch.arange(length), 0
    for picture in pictures:
        if not picture.flat:
            positions[picture.start : picture.end] = picture.start + more
        more += picture.length - (picture.end - picture.start)
        positions[picture.end :] = torch.arange(picture.end, length) + more
    return positions, more


def shifts(places: Tensor, columns: int | None) -> Tensor:
    """(K, A) int64, how much farther each kept token is, along each axis, than the engine was told.

    Args:
        places: (K,) ascending places among the picture's tokens, in prompt order.
        columns: Tokens in a row where positions have rows and columns (A = 3: time, height, width); None: A = 1.
    """
    if columns is None:
        return (places - torch.arange(len(places), device=places.device))[:, None]
    return torch.stack([torch.zeros_like(places), places // columns, places % columns], dim=1)


def with_shifts(features: Tensor, shift: Tensor) -> Tensor:
    """(K, D + 2 A) of (K, D) features and (K, A) shifts."""
    digits = torch.cat([shift // BASE, shift % BASE], dim=1)
    return torch.cat([features, digits.to(features)], dim=1)


def split_shifts(rows: Tensor, axes: int, width: int) -> tuple[Tensor, Tensor | None]:
    """The (K, width) features and the (K, axes) int64 shifts of what `with_shifts` made; None for rows without."""
    if rows.shape[1] == width:
        return rows, None
    high, low = rows[:, width:].long().split(axes, dim=1)
    return rows[:, :width], high * BASE + low
