"""The record of what one prefill kept."""

import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..adapters import Layout


@dataclass(frozen=True)
class EncoderTrace:
    """What the vision encoder had to do for a prefill.

    Attributes:
        units: Tiles (pictures or frames, where the encoder takes them whole) that it was given.
        encoded: Those that it ran on.
        hits: Those that were taken from the cache. What is neither has the pixels of another, and was encoded with it.
        misses: Those that were looked for in the cache, and encoded. cache_bytes: What the cache held afterwards.
    """

    units: int = 0
    encoded: int = 0
    hits: int = 0
    misses: int = 0
    cache_bytes: int = 0

    def __add__(self, other: "EncoderTrace") -> "EncoderTrace":
        """Of both together; the cache is one."""
        return EncoderTrace(
            self.units + other.units,
            self.encoded + other.encoded,
            self.hits + other.hits,
            self.misses + other.misses,
            max(self.cache_bytes, other.cache_bytes),
        )

    def __str__(self) -> str:
        same = self.units - self.encoded - self.hits
        text = f"encoder: {self.encoded} of {self.units} tiles or pictures encoded"
        text += f", {same} with the pixels of another" if same else ""
        return text + (f", {self.hits} from the cache of {self.cache_bytes / 2**20:.1f} MiB" if self.hits else "")


NOTHING_ENCODED = EncoderTrace()


@dataclass(frozen=True)
class ImageTrace:
    """What happened to one picture.

    Attributes:
        row: Its batch row.
        layout: Where its N visual tokens are on it, in token order: tile by tile, the thumbnail's last.
        budgets: Visual tokens kept in each tile, in token order.
        kept: (K,) int64 ascending indices into the picture's N visual tokens.
        positions: (N,) int64 positions of those N tokens in the unpruned sequence of its row, padding included.
        scores: Float32 maps: "region" (T,), "token", "instruction", "fused" (N,); empty where they were switched off.
        instruction: The text that was read as the user's; empty where the method reads none.
        structure: (M,) int64 positions of the line ends and tile markers among its visual tokens, which are none.
        structure_left: (M,) int64, the language-model layer at whose input each left; -1 where it stayed.
    """

    row: int
    layout: Layout
    budgets: list[int]
    kept: Tensor
    positions: Tensor
    scores: dict[str, Tensor] = field(default_factory=dict)
    instruction: str = ""
    structure: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    structure_left: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))

    @property
    def structure_kept(self) -> Tensor:
        """(M',) int64 positions of the line ends and tile markers that stayed."""
        return self.structure[self.structure_left < 0]

    @property
    def num_tokens(self) -> int:
        """Its visual tokens before pruning, N."""
        return self.layout.tokens

    @property
    def sizes(self) -> tuple[int, ...]:
        """Visual tokens of each tile before pruning, in token order."""
        return self.layout.sizes

    @property
    def grid(self) -> tuple[int, int] | None:
        """(columns, rows) of its tiles without the thumbnail, None for a single tile."""
        return self.layout.grid

    @property
    def boxes(self) -> Tensor:
        """(N, 4) float32: left, top, right, bottom of what each token shows, as fractions of the picture."""
        return self.layout.boxes

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and lists, ready for JSON."""
        return {
            "row": self.row,
            "instruction": self.instruction,
            "num_tokens": self.num_tokens,
            "grid": list(self.grid) if self.grid else None,
            "sizes": list(self.sizes),
            "budgets": list(self.budgets),
            "kept": self.kept.tolist(),
            "positions": self.positions.tolist(),
            "structure": self.structure.tolist(),
            "structure_kept": self.structure_kept.tolist(),
            "scores": {name: [round(value, 6) for value in score.tolist()] for name, score in self.scores.items()},
        }

    def __str__(self) -> str:
        kept = f"{self.num_tokens:,} -> {len(self.kept):,} visual tokens"
        if self.layout.video:
            return f"{kept}, {len(self.sizes)} frames\n  " + " ".join(map(str, self.budgets))
        if self.grid is None:
            return f"{kept}, one tile"
        columns, rows = self.grid
        width = max(len(str(budget)) for budget in self.budgets)
        lines = [f"{kept}, {columns} x {rows} tiles" + (" and thumbnail" if self.layout.thumbnail else "")]
        for r in range(rows):
            lines.append("  " + " ".join(f"{budget:>{width}}" for budget in self.budgets[r * columns : (r + 1) * columns]))
        return "\n".join([*lines, f"  thumbnail {self.budgets[-1]}"] if self.layout.thumbnail else lines)


@dataclass(frozen=True)
class PrefillTrace:
    """One prefill: its pictures, batch row by batch row in prompt order, and what was saved.

    Attributes:
        images: One `ImageTrace` per picture.
        visual_tokens: (before, after), summed over the batch.
        structure_tokens: (before, after) of line ends and tile markers, summed over the batch.
        layer_tokens: Visual tokens that each language-model layer works on, summed over the batch.
        sequence_length: (before, after), the longest row.
        cache_bytes: (before, after) of the whole KV cache after prefill, padding included.
        encoder: What the vision encoder had to do.
    """

    images: Sequence[ImageTrace] = ()
    visual_tokens: tuple[int, int] = (0, 0)
    structure_tokens: tuple[int, int] = (0, 0)
    layer_tokens: tuple[int, ...] = ()
    sequence_length: tuple[int, int] = (0, 0)
    cache_bytes: tuple[int, int] = (0, 0)
    encoder: EncoderTrace = NOTHING_ENCODED

    @property
    def average_tokens(self) -> float:
        """Visual tokens averaged over the language model's layers: what a method really works on."""
        return sum(self.layer_tokens) / len(self.layer_tokens) if self.layer_tokens else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and lists, ready for JSON."""
        return {
            "visual_tokens": list(self.visual_tokens),
            "structure_tokens": list(self.structure_tokens),
            "average_tokens": self.average_tokens,
            "sequence_length": list(self.sequence_length),
            "cache_bytes": list(self.cache_bytes),
            "encoder": asdict(self.encoder),
            "images": [image.to_dict() for image in self.images],
        }

    def __str__(self) -> str:
        if not self.images:
            return "no picture was pruned"
        before, after = self.cache_bytes
        tokens = "{:,} -> {:,} visual tokens".format(*self.visual_tokens)
        average = (
            f", {self.average_tokens:,.0f} averaged over layers" if self.layer_tokens[:1] != self.visual_tokens[1:] else ""
        )
        if self.structure_tokens[0]:
            average += ", {:,} -> {:,} line ends and tile markers".format(*self.structure_tokens)
        lines = [f"{tokens}{average}, KV cache {before / 2**20:.1f} -> {after / 2**20:.1f} MiB"]
        if self.encoder.encoded < self.encoder.units:
            lines.append(str(self.encoder))
        for number, image in enumerate(self.images, 1):
            lines.append(f"picture {number} (row {image.row}): {image}")
        return "\n".join(lines)


class Trace:
    """The newest prefill, whichever thread ran it; a new one replaces it as a whole.

    Before any, and after a prompt without pictures, `images` is empty. The attributes are `PrefillTrace`'s.
    """

    def __init__(self, prefill: PrefillTrace | None = None) -> None:
        self._newest = prefill or PrefillTrace()
        self._thread = threading.local()

    def update(self, prefill: PrefillTrace) -> None:
        """Take in a prefill of this thread."""
        self._newest = self._thread.newest = prefill

    @property
    def newest(self) -> PrefillTrace:
        """The newest prefill, as it stays whatever comes next."""
        return self._newest

    @property
    def of_this_thread(self) -> PrefillTrace:
        """The newest prefill of the thread that asks: calls side by side do not see each other's."""
        return getattr(self._thread, "newest", PrefillTrace())

    @property
    def images(self) -> Sequence[ImageTrace]:
        """One `ImageTrace` per picture."""
        return self._newest.images

    @property
    def visual_tokens(self) -> tuple[int, int]:
        """(before, after), summed over the batch."""
        return self._newest.visual_tokens

    @property
    def structure_tokens(self) -> tuple[int, int]:
        """(before, after) of line ends and tile markers, summed over the batch."""
        return self._newest.structure_tokens

    @property
    def layer_tokens(self) -> tuple[int, ...]:
        """Visual tokens that each language-model layer works on, summed over the batch."""
        return self._newest.layer_tokens

    @property
    def sequence_length(self) -> tuple[int, int]:
        """(before, after), the longest row."""
        return self._newest.sequence_length

    @property
    def cache_bytes(self) -> tuple[int, int]:
        """(before, after) of the whole KV cache after prefill, padding included."""
        return self._newest.cache_bytes

    @property
    def encoder(self) -> EncoderTrace:
        """What the vision encoder had to do."""
        return self._newest.encoder

    @property
    def average_tokens(self) -> float:
        """Visual tokens averaged over the language model's layers."""
        return self._newest.average_tokens

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and lists, ready for JSON."""
        return self._newest.to_dict()

    def __str__(self) -> str:
        return str(self._newest)
