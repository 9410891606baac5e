"""Which tokens of a prompt are left while it goes through the layers.

Tokens are counted in three ways, and names say which:

- *index*: which of a picture's N visual tokens, 0 to N - 1. Methods speak of these only.
- *place*: where in the prompt of this call, 0 to S - 1, as if nothing had left. In the whole unpruned conversation that is
  `seen + place`, where the KV cache has seen `seen` tokens before.
- *slot*: where in the sequence that the layers work on now, 0 to S' - 1. A token that left has none.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .gather import take, take_positions


class Remaining:
    """The tokens that are left, each in its slot; rows shorter than the longest are padded on the left.

    Attributes:
        places: (B, S') int64, the place of the token in each slot.
        valid: (B, S') bool; False marks padding.
        shorter: Whether any token has left.
        on_host: `valid` and `places` on the host.
    """

    def __init__(self, is_token: Tensor, on_host: Tensor) -> None:
        """All tokens of a prompt.

        Args:
            is_token: (B, S) bool; False marks padding. on_host: The same on the host, where it is decided what leaves.
        """
        self.places = torch.arange(is_token.shape[1], device=is_token.device).expand_as(is_token)
        self.valid = is_token
        self.shorter = False
        self.on_host = on_host, torch.arange(is_token.shape[1]).expand_as(on_host)
        self._prompt_length = is_token.shape[1]
        self._made: dict[Any, tuple[Any, Any]] = {}

    @property
    def padded(self) -> bool:
        """Whether any row holds padding."""
        return not bool(self.on_host[0].all())

    def slots(self) -> Tensor:
        """(B, S) the slot of the token at each place; 0 for those that left."""
        slots = self.places.new_zeros(len(self.places), self._prompt_length)
        order = torch.arange(self.places.shape[1], device=slots.device).expand_as(self.places)
        return slots.scatter_reduce_(1, self.places, order * self.valid, reduce="amax")

    def hold(self) -> Tensor:
        """(B, S) bool: which places hold a token that is left."""
        found = self.places.new_zeros(len(self.places), self._prompt_length)
        return found.scatter_add_(1, self.places, self.valid.long()) > 0

    def leave(self, stays: Tensor) -> Tensor | None:
        """Let tokens leave.

        Args:
            stays: (B, S) bool, by place, on the host.

        Returns:
            (B, S'') the slots, as they were, of what is left; None where nothing leaves.
        """
        valid, places = self.on_host
        here = stays.gather(1, places) & valid
        if bool((here == valid).all()):
            return None
        slots, valid = compact(here)
        self.on_host, device = (valid, places.gather(1, slots)), self.places.device
        self.valid, self.places = (made.to(device) for made in self.on_host)
        self.shorter = True
        self._made = {}  # not cleared: `as_now` shares it
        return slots.to(device)

    def as_now(self) -> "Remaining":
        """The tokens that are left, whatever leaves later."""
        return copy.copy(self)

    def shorten(self, argument: Any) -> Any:
        """A layer's positions (B or 1, S, ...) or (axes, B or 1, S, D), or a tuple of such, at the tokens that are left."""
        if argument is None or not self.shorter:
            return argument
        if isinstance(argument, tuple):
            return tuple(map(self.shorten, argument))
        return self.once(argument, lambda: take_positions(argument, self.places))

    def shorten_mask(self, mask: Tensor, held: int) -> Tensor:
        """A layer's own mask (B or 1, 1, S, held + S), at the tokens that are left; `held` slots of a cache come first.

        Where the model goes on with the prompt's last token only, (B or 1, 1, 1, held + S): it never leaves.
        """
        return self.once(mask, lambda: self._short_mask(mask, held))

    def _short_mask(self, mask: Tensor, held: int) -> Tensor:
        places, valid = self.places.to(mask.device), self.valid.to(mask.device)
        cached = torch.arange(held, device=mask.device).expand(len(places), -1)
        columns, asked = torch.cat([cached, held + places], dim=1), min(mask.shape[2], places.shape[1])
        rows = places[:, -asked:] - (self._prompt_length - mask.shape[2])
        short = take(take(mask, rows, dim=2), columns, dim=3)
        own = torch.eye(places.shape[1], dtype=torch.bool, device=mask.device)[-asked:]
        padding = torch.nn.functional.pad(~valid[:, None, None] & ~own, (held, 0))
        empty = torch.nn.functional.pad(
            own & ~valid[:, None, -asked:, None], (held, 0)
        )  # pads see themselves: none sees nothing
        low, zero = (False, True) if mask.dtype == torch.bool else (torch.finfo(mask.dtype).min, 0.0)
        return short.masked_fill(padding, low).masked_fill(empty, zero)

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What `make` makes of an object that layers share, made once until the next token leaves."""
        if id(key) not in self._made:
            self._made[id(key)] = key, make()  # the key is kept, so that no other object gets its id
        return self._made[id(key)][1]


def compact(mask: Tensor) -> tuple[Tensor, Tensor]:
    """(B, L) columns of the True entries of a (B, S) mask, in order and aligned at the rows' ends, and which are no padding."""
    longest = int(mask.sum(dim=1).max())
    order = torch.arange(mask.shape[1], device=mask.device)
    columns = torch.where(mask, order, -1).sort(dim=1).values[:, mask.shape[1] - longest :]
    return columns.clamp_min(0), columns >= 0
