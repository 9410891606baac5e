"""Reading the vision encoder while it runs: its signals, and which of them belong to which picture of a prompt."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .. import scoring
from ..adapters import Adapter, Span
from .picture import Picture, Vision

SIGNALS = "ptp_signals"
"""Attribute of an encoder output that carries its `Vision`, so that encoded pictures can be reused."""
THUMBNAIL_SIDE = 24


class VisionReader:
    """Keeps the signals of each encoder run, on the encoder's output and until the next run.

    Args:
        layer: Vision layer to read; None reads only what the tile grid is found by.
    """

    def __init__(self, adapter: Adapter, layer: int | None) -> None:
        self.adapter, self.layer = adapter, layer
        self.newest: Vision | None = None
        self._captured: dict[str, Tensor] = {}

    def attach(self) -> list[RemovableHandle]:
        """Put the hooks on the encoder."""
        handles = []
        if self.layer is not None:
            where = self.adapter.vision_attention(self.layer)
            handles.append(where.query.register_forward_hook(self._capture("query")))
            handles.append(where.key.register_forward_hook(self._capture("key")))
            handles.append(self.adapter.vision_embeddings().register_forward_hook(self._capture("embeddings")))
        handles.append(self.adapter.vision.register_forward_hook(self._leave, with_kwargs=True))
        return handles

    def forget(self) -> None:
        """Drop what was read."""
        self.newest = None
        self._captured.clear()

    def _capture(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._captured[name] = output[0] if isinstance(output, tuple) else output

        return hook

    def _leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        pixels: Tensor = kwargs["pixel_values"] if "pixel_values" in kwargs else args[0]
        small = F.interpolate(pixels.float(), size=(THUMBNAIL_SIDE, THUMBNAIL_SIDE), mode="area")
        empty = small.new_empty(len(small), 0)
        vision = Vision(None, empty, empty, empty, small)
        if self.layer is not None:
            where = self.adapter.vision_attention(self.layer)
            query, key = (self._captured.pop(n).unflatten(-1, (where.heads, -1)).transpose(1, 2) for n in ("query", "key"))
            states = self._captured.pop("embeddings")
            score = scoring.cls_attention if self.adapter.has_cls else scoring.received_attention
            attention = score(query, key, where.scale)
            embeddings = states[:, 0] if self.adapter.has_cls else states.mean(dim=1)
            vision = Vision(self.layer, attention, self.adapter.pool(attention), embeddings, small)
        self.newest = vision
        setattr(output, SIGNALS, vision)

    def pictures(self, spans: Sequence[Span], batch: int, encoded: Any | None) -> list[Picture]:
        """One `Picture` per span of a prompt.

        Args:
            batch: Rows of the prompt. Beams and num_return_sequences repeat each row after its pictures were encoded; the
                copies share their pictures.
            encoded: An encoder output made earlier; None takes the newest run.

        Raises:
            ValueError: the encoder output carries no signals of `layer`, or of another number of tiles.
        """
        vision = self.newest if encoded is None else getattr(encoded, SIGNALS, None)
        if vision is None or (self.layer is not None and vision.layer != self.layer):
            raise ValueError(
                "The encoded pictures carry no signals for this pruner. Encode them while it is attached (another one may read "
                "another vision layer), and without prefill_chunk_size."
            )
        tiles = sum(len(span.sizes) for span in spans)
        copies, rest = divmod(tiles, len(vision.attention))
        if rest or copies == 0 or batch % copies:
            raise ValueError(
                f"The prompt has image tokens for {tiles} tiles but {len(vision.attention)} tiles were encoded. "
                "Pass the pixel values and the token ids that the processor made together."
            )
        start, pictures = 0, []
        seen: dict[tuple[int, int], Picture] = {}
        rank: Counter[int] = Counter()
        for span in spans:
            original = (span.row // copies, rank[span.row])
            rank[span.row] += 1
            if original not in seen:
                tile = slice(start, start + len(span.sizes))
                start = tile.stop
                thumbnails = vision.thumbnails[tile]
                parts = (vision.patch_attention[tile], vision.attention[tile], vision.embeddings[tile], thumbnails)
                alive = torch.arange(span.tokens, device=vision.attention.device)
                grid = self.adapter.grid(thumbnails)
                seen[original] = Picture(span.sizes, grid, alive, *parts, relevance=None)
            pictures.append(seen[original])
        return pictures
