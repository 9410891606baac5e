"""Reading the vision encoder while it runs: its signals, and which of them belong to which picture of a prompt."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .. import scoring
from ..adapters import Adapter, Modality, Span
from .compiled import uncompiled
from .picture import Picture, Saliency, Vision

SIGNALS = "ptp_signals"
"""Attribute of an encoder output that carries its `Vision`, so that encoded pictures can be reused."""


def read_saliency(adapter: Adapter, layer: int, queries: Tensor, keys: Tensor, about: Any = None) -> list[Tensor]:
    """What a vision layer looks at, (P,) per unit, from what the modules of `vision_attention` put out."""
    score = scoring.cls_attention if adapter.has_cls else scoring.received_attention
    scale = adapter.vision_attention(layer).scale
    rows = [row for q, k in adapter.heads(layer, queries, keys, about) for row in score(q, k, scale).unbind()]
    return adapter.by_unit(layer, rows, about)


def picture_of(adapter: Adapter, span: Span, vision: Vision, layers: Sequence[int]) -> Picture:
    """What a method may read of one picture, `layers` of the encoder among it."""
    saliency = []
    for layer in layers:
        rows = [vision.saliency[layer][unit] for unit in span.units]
        saliency.append(Saliency(adapter.pool(rows, span), rows[-1] if span.layout.thumbnail else None))
    pixels = tuple(vision.pixels[unit] for unit in span.units)
    alive = torch.arange(span.layout.tokens, device=pixels[0].device)
    embeddings = torch.cat([vision.embeddings[unit] for unit in span.units]) if vision.embeddings else pixels[0].new_empty(0, 0)
    return Picture(span.layout, alive, tuple(saliency), embeddings, pixels)


class VisionReader:
    """Keeps the signals of each encoder run, on the encoder's output and until the next run.

    Args:
        layers: Vision layers to read; with none, only what the tiles are found by.
        window: Side, in pixels, of the regions of pictures that are not cut into tiles.
    """

    def __init__(self, adapter: Adapter, layers: Sequence[int], window: int) -> None:
        self.adapter, self.window = adapter, window
        self.layers = [layer % adapter.vision_depth for layer in layers]
        self.newest: dict[str, Vision] = {}
        self._captured: dict[Any, Tensor] = {}
        self._encoding = False

    def attach(self) -> list[RemovableHandle]:
        """Put the hooks on the encoder, and listen to the method that runs it."""
        handles = [self.adapter.vision.register_forward_pre_hook(self._enter, with_kwargs=True)]
        for layer in set(self.layers):
            where = self.adapter.vision_attention(layer)
            handles.append(where.query.register_forward_hook(self._capture((layer, "query"))))
            if where.key is not where.query:
                handles.append(where.key.register_forward_hook(self._capture((layer, "key"))))
        if self.layers:
            handles.append(self.adapter.vision_embeddings().register_forward_hook(self._capture("embeddings")))
        for modality in self.adapter.modalities:
            self._listen(modality)
        return handles

    def detach(self) -> None:
        """Stop listening; the hooks are the caller's to remove."""
        for modality in self.adapter.modalities:
            vars(self.adapter.core).pop(modality.method, None)
        self.forget()

    def forget(self) -> None:
        """Drop what was read."""
        self.newest.clear()
        self._captured.clear()

    def _listen(self, modality: Modality) -> None:
        """Shadow the method that encodes: only its arguments tell the pictures' sizes, and `generate` drops them."""
        encode = getattr(self.adapter.core, modality.method)
        signature = inspect.signature(encode)

        @functools.wraps(encode)
        def listening(*args: Any, **kwargs: Any) -> Any:
            if self._encoding:  # one modality may be encoded as another
                return encode(*args, **kwargs)
            self._captured.clear()
            self._encoding = True
            try:
                with uncompiled():
                    output = encode(*args, **kwargs)
            finally:
                self._encoding = False
            inputs = signature.bind(*args, **kwargs).arguments
            vision = self.newest[modality.name] = self._read(inputs | inputs.get("kwargs", {}), output)
            if not isinstance(output, tuple):
                setattr(output, SIGNALS, vision)
            return output

        setattr(self.adapter.core, modality.method, listening)

    def _capture(self, name: Any) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._captured[name] = output[0] if isinstance(output, tuple) else output

        return hook

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._captured["pixels"] = args[0] if args else kwargs["pixel_values"]

    def _read(self, inputs: dict[str, Any], output: Any) -> Vision:
        adapter, seen = self.adapter, self._captured
        about = adapter.about(inputs, self.window)
        saliency = {}
        for layer in set(self.layers):
            query = seen.pop((layer, "query"))
            saliency[layer] = read_saliency(adapter, layer, query, seen.pop((layer, "key"), query), about)
        embeddings = adapter.embed(seen.pop("embeddings"), about) if self.layers else ()
        pixels = adapter.shrink(seen.pop("pixels"), about)
        features = output[1] if isinstance(output, tuple) else output.pooler_output
        parts = [features] if isinstance(features, Tensor) else features
        return Vision(saliency, embeddings, pixels, about, self.window, sum(part.numel() // part.shape[-1] for part in parts))

    def pictures(self, input_ids: Tensor, encoded: Mapping[str, Any]) -> tuple[list[Span], list[Picture]]:
        """The pictures of a prompt, batch row by batch row, in prompt order.

        Args:
            input_ids: (B, S). Beams and num_return_sequences repeat each row after its pictures were encoded; the copies
                share their pictures.
            encoded: Encoder outputs made earlier, by the modality's name; where there is none, the newest run counts.

        Raises:
            ValueError: an encoder output carries no signals of `layers`, or does not fit the prompt.
        """
        found: list[tuple[Span, Picture]] = []
        for modality in self.adapter.modalities:
            if bool((tokens := input_ids == modality.token_id).any()):
                output = encoded.get(modality.name)
                vision = self.newest.get(modality.name) if output is None else getattr(output, SIGNALS, None)
                found += self._find(input_ids, tokens, vision)
        found.sort(key=lambda pair: (pair[0].row, int(pair[0].positions[0])))
        return [span for span, _ in found], [picture for _, picture in found]

    def _find(self, input_ids: Tensor, tokens: Tensor, vision: Vision | None) -> list[tuple[Span, Picture]]:
        """The pictures of one modality, whose visual tokens are the True entries of `tokens` (B, S)."""
        if vision is None or not set(self.layers) <= set(vision.saliency):
            raise ValueError(
                "The encoded pictures carry no signals for this pruner. Encode them while it is attached (another one may read "
                "another vision layer), and without prefill_chunk_size."
            )
        if vision.window != self.window:
            raise ValueError(
                f"The pictures were encoded for regions of {vision.window} px and this pruner has {self.window}. Encode "
                "them while it is attached, or give it the same window."
            )
        count = int(tokens.sum())
        copies, rest = divmod(count, vision.tokens)
        if rest or copies == 0 or len(input_ids) % copies:
            raise ValueError(
                f"The prompt has {count} image tokens but pictures of {vision.tokens} visual tokens were encoded. "
                "Pass the pixel values and the token ids that the processor made together."
            )
        originals = self.adapter.locate(input_ids[::copies].cpu(), tokens[::copies].cpu(), vision.about, vision.pixels)
        pictures = [picture_of(self.adapter, span, vision, self.layers) for span in originals]
        return [
            (replace(span, row=copies * span.row + copy), picture)
            for span, picture in zip(originals, pictures, strict=True)
            for copy in range(copies)
        ]
