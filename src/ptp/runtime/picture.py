"""What a method may look at when it decides about one picture."""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Saliency:
    """What one vision layer looks at, tile by tile.

    Attributes:
        patches: (T, P) float32, [CLS] attention (without [CLS]: mean received attention) of each patch.
        tokens: (T, n) the same pooled onto visual tokens.
    """

    patches: Tensor
    tokens: Tensor

    def __getitem__(self, tiles: slice) -> "Saliency":
        return Saliency(self.patches[tiles], self.tokens[tiles])


@dataclass(frozen=True)
class Vision:
    """Signals of the vision encoder, tile by tile, for all pictures of a batch.

    Attributes:
        saliency: Of each layer that was asked for, by its number counted from the first.
        embeddings: (T, D) the [CLS] embedding of each tile (without [CLS]: the mean patch embedding); (T, 0) where no
            layer was asked for.
        thumbnails: (T, C, 24, 24) each tile's pixels shrunk, for finding the tile grid.
    """

    saliency: Mapping[int, Saliency]
    embeddings: Tensor
    thumbnails: Tensor


@dataclass(frozen=True)
class Picture:
    """One picture of the prompt, at one stage.

    Attributes:
        sizes: Visual tokens of each tile, in token order.
        grid: (columns, rows) of its tiles, None for a single tile.
        alive: (N',) ascending indices of the tokens that earlier stages left; all N at the first stage.
        saliency: Of the method's `vision_layers`, in that order.
        embeddings: (T, D) the [CLS] embedding of each tile (without [CLS]: the mean patch embedding).
        thumbnails: (T, C, 24, 24) each tile's pixels shrunk.
        read_relevance, read_states, read_text, read_keys: What `relevance`, `states`, `text_states` and `keys` read.
    """

    sizes: tuple[int, ...]
    grid: tuple[int, int] | None
    alive: Tensor
    saliency: tuple[Saliency, ...]
    embeddings: Tensor
    thumbnails: Tensor
    read_relevance: Callable[[], Tensor] | None = None
    read_states: Callable[[], Tensor] | None = None
    read_text: Callable[[], Tensor] | None = None
    read_keys: Callable[[], Tensor] | None = None

    @property
    def attention(self) -> Tensor:
        """(T, n) float32 saliency of each visual token in the method's first vision layer."""
        return self.saliency[0].tokens

    @property
    def patch_attention(self) -> Tensor:
        """(T, P) float32 saliency of each patch in the method's first vision layer."""
        return self.saliency[0].patches

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
        return zlib.crc32((16 * self.thumbnails).round().to("cpu", torch.int8).contiguous().numpy().tobytes())

    def count_per_tile(self, kept: Tensor) -> list[int]:
        """How many of the (K,) indices `kept` lie in each tile, in token order."""
        sizes = torch.tensor(self.sizes)
        tile = torch.arange(len(self.sizes)).repeat_interleave(sizes)
        return torch.bincount(tile[kept.cpu()], minlength=len(self.sizes)).tolist()


def _read(reader: Callable[[], Tensor] | None) -> Tensor:
    if reader is None:
        raise ValueError("This can be read inside `select` only, and relevance only with `text_rows`. Read it there.")
    return reader().float()
