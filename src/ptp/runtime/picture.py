"""What a method may look at when it decides about one picture."""

import zlib
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Vision:
    """Signals of the vision encoder, tile by tile, for all pictures of a batch.

    Attributes:
        layer: The vision layer they were read from; None where none was asked for, and the first three are empty.
        patch_attention: (T, P) float32, [CLS] attention (or mean received attention) of each patch.
        attention: (T, n) the same pooled onto visual tokens.
        embeddings: (T, D) the [CLS] embedding of each tile (without [CLS]: the mean patch embedding).
        thumbnails: (T, C, 24, 24) each tile's pixels shrunk, for finding the tile grid.
    """

    layer: int | None
    patch_attention: Tensor
    attention: Tensor
    embeddings: Tensor
    thumbnails: Tensor


@dataclass(frozen=True)
class Picture:
    """One picture of the prompt, at one stage.

    Attributes:
        sizes: Visual tokens of each tile, in token order.
        grid: (columns, rows) of its tiles, None for a single tile.
        alive: (N',) ascending indices of the tokens that earlier stages left; all N at the first stage.
        patch_attention: (T, P) float32, [CLS] attention (without [CLS]: mean received attention) of each patch.
        attention: (T, n) the same pooled onto visual tokens.
        embeddings: (T, D) the [CLS] embedding of each tile (without [CLS]: the mean patch embedding).
        thumbnails: (T, C, 24, 24) each tile's pixels shrunk.
        relevance: (N,) float32 instruction relevance, zero for tokens no longer alive; None where not asked for.
    """

    sizes: tuple[int, ...]
    grid: tuple[int, int] | None
    alive: Tensor
    patch_attention: Tensor
    attention: Tensor
    embeddings: Tensor
    thumbnails: Tensor
    relevance: Tensor | None

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
