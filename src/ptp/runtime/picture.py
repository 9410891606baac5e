"""What a method may look at when it decides about one picture."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..adapters import Layout
from .reads import AttentionKind
from .trace import NOTHING_ENCODED, EncoderTrace


@dataclass(frozen=True)
class Vision:
    """Signals of one run of the vision encoder, unit by unit (tiles; pictures or frames where it takes them whole).

    Attributes:
        attention: (P,) float32 per unit, by (layer counted from the first, "cls" or "received").
        keys: (P, D) float32 per unit, the mean over heads, by layer.
        embeddings: (regions, D) per unit; empty where no layer was asked for.
        pixels: A few pixels per unit.
        about: What the adapter remembers of the pictures' sizes.
        window: Side in pixels of regions that are no tiles.
        tokens: Visual tokens that were put out, in all.
        encoder: How they were come by.
    """

    attention: Mapping[tuple[int, AttentionKind], Sequence[Tensor]]
    keys: Mapping[int, Sequence[Tensor]]
    embeddings: Sequence[Tensor]
    pixels: Sequence[Tensor]
    about: Any
    window: int
    tokens: int
    encoder: EncoderTrace = NOTHING_ENCODED


@dataclass(frozen=True)
class VisionSignal:
    """One vision layer's view of a picture: what a `VisionRead` asked for, and nothing else.

    Attributes:
        thumbnail: (P,) attention of the thumbnail's patches, in raster order; None without a thumbnail.
    """

    read_saliency: Tensor | None
    thumbnail: Tensor | None = None
    read_keys: Tensor | None = None

    @property
    def saliency(self) -> Tensor:
        """(N,) float32, attention of each patch pooled onto visual tokens."""
        if self.read_saliency is None:
            raise ValueError(
                'No saliency was asked for. Return VisionRead(layer, attention="either") from the method\'s `reads`.'
            )
        return self.read_saliency

    @property
    def keys(self) -> Tensor:
        """(N, D) float32, the layer's keys: the mean over heads, pooled onto visual tokens."""
        if self.read_keys is None:
            raise ValueError("No encoder keys were asked for. Return VisionRead(layer, keys=True) from the method's `reads`.")
        return self.read_keys


class Readings(Protocol):
    """What can be read in the language model at a stage; nothing is computed before it is asked for. Float or half."""

    def states(self) -> Tensor:
        """(N', D) hidden states of the tokens alive, at the input of the stage's layer."""
        ...

    def normed(self, states: Tensor) -> Tensor:
        """What the norm behind the last layer makes of hidden states."""
        ...

    def keys(self) -> Tensor:
        """(N', heads * width) keys of the tokens alive, of the layer and in the form that the probe compares."""
        ...

    def text_keys(self) -> Tensor:
        """(R, heads * width) keys of the probe's text tokens, likewise."""
        ...

    def text_states(self) -> Tensor:
        """(R, D) hidden states of the probe's text tokens, at the input of the stage's layer."""
        ...

    def inputs(self) -> Tensor:
        """(N, D) of all visual tokens, at the input of the first layer."""
        ...

    def text_inputs(self) -> Tensor:
        """(R, D) of the probe's text tokens, at the input of the first layer."""
        ...

    def text_attention(self, rows: Tensor | None) -> Tensor:
        """(N,) attention from the probe's text tokens, or from the True ones of `rows` (R,); zero for tokens that left."""
        ...


@dataclass(frozen=True)
class Picture:
    """One picture of the prompt, at one stage.

    Attributes:
        layout: Where its N visual tokens are on it, tile by tile.
        alive: (N',) ascending indices of the tokens that earlier stages left; all N at the first stage.
        vision: What the method's `Reads.vision` asked for, in that order.
        embeddings: (T, D) the [CLS] embedding of each tile (without [CLS]: the mean patch embedding); empty where no vision
            layer was asked for.
        pixels: A few pixels of each of its units.
        readings: What can be read in the language model.
    """

    layout: Layout
    alive: Tensor
    vision: tuple[VisionSignal, ...]
    embeddings: Tensor
    pixels: tuple[Tensor, ...]
    readings: Readings | None = None

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
    def tokens(self) -> int:
        """Visual tokens before any pruning, N."""
        return sum(self.sizes)

    @property
    def saliency(self) -> Tensor:
        """(N,) float32 saliency of each visual token in the first vision layer that the method reads."""
        if not self.vision:
            raise ValueError("No saliency was asked for. Return Reads(vision=(VisionRead(-1),)) from the method's `reads`.")
        return self.vision[0].saliency

    @property
    def states(self) -> Tensor:
        """(N', D) float32 hidden states of the tokens alive, at the input of the stage's layer."""
        return self._readings.states().float()

    @property
    def keys(self) -> Tensor:
        """(N', heads * width) float32 keys of the tokens alive, of the layer that the probe names, with rotary positions (of a
        padded row, counted from its first token) or without as it says; without a probe of the stage's layer, before them."""
        return self._readings.keys().float()

    @property
    def text_keys(self) -> Tensor:
        """(R, heads * width) float32 keys of the probe's text tokens, likewise."""
        return self._readings.text_keys().float()

    def normed(self, states: Tensor) -> Tensor:
        """(..., D) float32: what the norm behind the language model's last layer makes of hidden states (..., D)."""
        return self._readings.normed(states).float()

    @property
    def text_states(self) -> Tensor:
        """(R, D) float32 hidden states of the probe's text tokens, at the input of the stage's layer."""
        return self._readings.text_states().float()

    @property
    def inputs(self) -> Tensor:
        """(N, D) float32 of all its visual tokens, at the input of the language model's first layer."""
        return self._readings.inputs().float()

    @property
    def text_inputs(self) -> Tensor:
        """(R, D) float32 of the probe's text tokens, at the input of the language model's first layer."""
        return self._readings.text_inputs().float()

    @property
    def text_attention(self) -> Tensor:
        """(N,) float32 attention from the probe's text tokens; zero for tokens that left."""
        return self.attention_from(None)

    def attention_from(self, rows: Tensor | None) -> Tensor:
        """(N,) float32 attention from some of the probe's text tokens: the True entries of `rows` (R,); None is all."""
        return self._readings.text_attention(rows).float().to(self.alive.device)

    @property
    def _readings(self) -> Readings:
        if self.readings is None:
            raise ValueError("States, keys and attention can be read inside `select` only. Read them there.")
        return self.readings

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
