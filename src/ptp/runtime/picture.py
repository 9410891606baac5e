"""What a method may look at when it decides about one picture."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..adapters import Layout


@dataclass(frozen=True)
class Vision:
    """Signals of one run of the vision encoder, unit by unit (tiles; pictures or frames where it takes them whole).

    Attributes:
        saliency: (P,) float32 per unit, of each layer that was asked for, by its number counted from the first: [CLS]
            attention (without [CLS]: mean received attention) of each patch.
        embeddings: (regions, D) per unit; empty where no layer was asked for.
        pixels: A few pixels per unit.
        about: What the adapter remembers of the pictures' sizes.
        window: Side in pixels of regions that are no tiles.
        tokens: Visual tokens that were put out, in all.
    """

    saliency: Mapping[int, Sequence[Tensor]]
    embeddings: Sequence[Tensor]
    pixels: Sequence[Tensor]
    about: Any
    window: int
    tokens: int


@dataclass(frozen=True)
class Saliency:
    """What one vision layer looks at in a picture.

    Attributes:
        tokens: (N,) float32, attention of each patch pooled onto visual tokens.
        thumbnail: (P,) the same of the thumbnail's patches, a square in raster order; None without a thumbnail.
    """

    tokens: Tensor
    thumbnail: Tensor | None


@dataclass(frozen=True)
class Picture:
    """One picture of the prompt, at one stage.

    Attributes:
        layout: Where its visual tokens are on it.
        alive: (N',) ascending indices of the tokens that earlier stages left; all N at the first stage.
        saliency: Of the method's `vision_layers`, in that order.
        embeddings: (T, D) the [CLS] embedding of each tile (without [CLS]: the mean patch embedding).
        pixels: A few pixels of each of its units.
        read_relevance, read_states, read_text, read_keys: What `relevance`, `states`, `text_states` and `keys` read.
    """

    layout: Layout
    alive: Tensor
    saliency: tuple[Saliency, ...]
    embeddings: Tensor
    pixels: tuple[Tensor, ...]
    read_relevance: Callable[[], Tensor] | None = None
    read_states: Callable[[], Tensor] | None = None
    read_text: Callable[[], Tensor] | None = None
    read_keys: Callable[[], Tensor] | None = None

    @property
    def sizes(self) -> tuple[int, ...]:
        """Visual tokens of each tile, in token order."""
        return self.layout.sizes

    @property
    def grid(self) -> tuple[int, int] | None:
        """(columns, rows) of its tiles, None for a single tile."""
        return self.layout.grid

    @property
    def thumbnail(self) -> bool:
        """Whether the last tile is the whole picture once more."""
        return self.layout.thumbnail

    @property
    def tiles(self) -> int:
        """How many tiles there are without the thumbnail."""
        return len(self.sizes) - self.thumbnail

    @property
    def attention(self) -> Tensor:
        """(N,) float32 saliency of each visual token in the method's first vision layer."""
        return self.saliency[0].tokens

    @property
    def relevance(self) -> Tensor:
        """(N,) float32 attention from the text tokens that the method's `text_rows` asks for; zero for tokens that left."""
        return _read(self.read_relevance).to(self.alive.device)

    @property
    def states(self) -> Tensor:
        """(N', D) float32 hidden states of the tokens alive, at the input of the stage's layer."""
        return _read(self.read_states)

    @property
    def text_states(self) -> Tensor:
        """(R, D) float32 hidden states of the text tokens that `relevance` comes from."""
        return _read(self.read_text)

    @property
    def keys(self) -> Tensor:
        """(N', heads * width) float32 keys of the tokens alive in the stage's layer, before rotary positions."""
        return _read(self.read_keys)

    @property
    def tokens(self) -> int:
        """Visual tokens before any pruning, N."""
        return sum(self.sizes)

    @property
    def fingerprint(self) -> int:
        """A number made of its pixels, to draw from where chance decides: pictures differ, repetitions do not."""
        whole = torch.cat([part.flatten() for part in self.pixels])
        return zlib.crc32((16 * whole).round().to("cpu", torch.int8).numpy().tobytes())

    def count_per_tile(self, kept: Tensor) -> list[int]:
        """How many of the (K,) indices `kept` lie in each tile, in token order."""
        sizes = torch.tensor(self.sizes)
        tile = torch.arange(len(self.sizes)).repeat_interleave(sizes)
        return torch.bincount(tile[kept.cpu()], minlength=len(self.sizes)).tolist()


def _read(reader: Callable[[], Tensor] | None) -> Tensor:
    if reader is None:
        raise ValueError("This can be read inside `select` only, and relevance only with `text_rows`. Read it there.")
    return reader().float()
