"""Pictures that were encoded, before anything was dropped: another question about one of them encodes nothing."""

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from torch import Tensor

from ...runtime import Picture


@dataclass(frozen=True)
class Encoded:
    """One picture as the encoder sees it.

    Attributes:
        features: (M, D) as the engine's own encoding makes them, in prompt order; not all need be visual tokens (line ends).
        picture: What a method may read of it, but for text. places: (N,) where its visual tokens are among them.
        columns: Tokens in a row where positions have rows and columns.
    """

    features: Tensor
    picture: Picture
    places: Tensor
    columns: int | None = None


class Reuse:
    """The pictures that were used last, up to a number of bytes.

    Attributes:
        hits, misses: How often a picture was there, and was not.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.size, self.hits, self.misses = limit, 0, 0, 0
        self._found: OrderedDict[Hashable, tuple[Encoded, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._found)

    def get(self, key: Hashable) -> Encoded | None:
        """The picture of a key; None where it is not remembered."""
        found = self._found.get(key)
        if found is None:
            self.misses += 1
            return None
        self.hits += 1
        self._found.move_to_end(key)
        return found[0]

    def put(self, key: Hashable, encoded: Encoded) -> None:
        """Remember a picture, and forget those that were not asked for the longest; one that is larger than all is not kept."""
        size = size_of(encoded)
        if size > self.limit:
            return
        if key in self._found:
            self.size -= self._found.pop(key)[1]
        self._found[key] = encoded, size
        self.size += size
        while self.size > self.limit:
            self.size -= self._found.popitem(last=False)[1][1]


def size_of(thing: Any) -> int:
    """Bytes of all tensors in dataclasses, tuples and lists."""
    if isinstance(thing, Tensor):
        return thing.numel() * thing.element_size()
    if isinstance(thing, tuple | list):
        return sum(map(size_of, thing))
    if is_dataclass(thing) and not isinstance(thing, type):
        return sum(size_of(getattr(thing, field.name)) for field in fields(thing))
    return 0
