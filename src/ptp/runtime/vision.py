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
from .picture import Picture, Saliency, Vision

SIGNALS = "ptp_signals"
"""Attribute of an encoder output that carries its `Vision`, so that encoded pictures can be reused."""
THUMBNAIL_SIDE = 24


def read_saliency(adapter: Adapter, layer: int, queries: Tensor, keys: Tensor) -> Saliency:
    """What a vision layer looks at, from its queries and keys (T, H, L, D), L = 1 + P with [CLS] and P without."""
    score = scoring.cls_attention if adapter.has_cls else scoring.received_attention
    attention = score(queries, keys, adapter.vision_attention(layer).scale)
    return Saliency(attention, adapter.pool(attention))


class VisionReader:
    """Keeps the signals of each encoder run, on the encoder's output and until the next run.

    Args:
        layers: Vision layers to read; with none, only what the tile grid is found by.
    """

    def __init__(self, adapter: Adapter, layers: Sequence[int]) -> None:
        self.adapter = adapter
        self.layers = [layer % adapter.vision_depth for layer in layers]
        self.newest: Vision | None = None
        self._captured: dict[Any, Tensor] = {}

    def attach(self) -> list[RemovableHandle]:
        """Put the hooks on the encoder."""
        handles = []
        for layer in set(self.layers):
            where = self.adapter.vision_attention(layer)
            handles.append(where.query.register_forward_hook(self._capture((layer, "query"))))
            handles.append(where.key.register_forward_hook(self._capture((layer, "key"))))
        if self.layers:
            handles.append(self.adapter.vision_embeddings().register_forward_hook(self._capture("embeddings")))
        handles.append(self.adapter.vision.register_forward_hook(self._leave, with_kwargs=True))
        return handles

    def forget(self) -> None:
        """Drop what was read."""
        self.newest = None
        self._captured.clear()

    def _capture(self, name: Any) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._captured[name] = output[0] if isinstance(output, tuple) else output

        return hook

    def _leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        pixels: Tensor = kwargs["pixel_values"] if "pixel_values" in kwargs else args[0]
        small = F.interpolate(pixels.float(), size=(THUMBNAIL_SIDE, THUMBNAIL_SIDE), mode="area")
        saliency, embeddings = {}, small.new_empty(len(small), 0)
        for layer in set(self.layers):
            where = self.adapter.vision_attention(layer)
            query, key = (
                self._captured.pop((layer, name)).unflatten(-1, (where.heads, -1)).transpose(1, 2) for name in ("query", "key")
            )
            saliency[layer] = read_saliency(self.adapter, layer, query, key)
        if self.layers:
            states = self._captured.pop("embeddings")
            embeddings = states[:, 0] if self.adapter.has_cls else states.mean(dim=1)
        self.newest = Vision(saliency, embeddings, small)
        setattr(output, SIGNALS, self.newest)

    def pictures(self, spans: Sequence[Span], batch: int, encoded: Any | None) -> list[Picture]:
        """One `Picture` per span of a prompt.

        Args:
            batch: Rows of the prompt. Beams and num_return_sequences repeat each row after its pictures were encoded; the
                copies share their pictures.
            encoded: An encoder output made earlier; None takes the newest run.

        Raises:
            ValueError: the encoder output carries no signals of `layers`, or of another number of tiles.
        """
        vision = self.newest if encoded is None else getattr(encoded, SIGNALS, None)
        if vision is None or not set(self.layers) <= set(vision.saliency):
            raise ValueError(
                "The encoded pictures carry no signals for this pruner. Encode them while it is attached (another one may read "
                "another vision layer), and without prefill_chunk_size."
            )
        tiles = sum(len(span.sizes) for span in spans)
        copies, rest = divmod(tiles, len(vision.thumbnails))
        if rest or copies == 0 or batch % copies:
            raise ValueError(
                f"The prompt has image tokens for {tiles} tiles but {len(vision.thumbnails)} tiles were encoded. "
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
                alive = torch.arange(span.tokens, device=thumbnails.device)
                saliency = tuple(vision.saliency[layer][tile] for layer in self.layers)
                grid = self.adapter.grid(thumbnails)
                seen[original] = Picture(span.sizes, grid, alive, saliency, vision.embeddings[tile], thumbnails)
            pictures.append(seen[original])
        return pictures
