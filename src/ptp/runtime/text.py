"""Reading the language model while it prefills: what the text tokens pay attention to, and what the pictures have become."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .. import scoring
from ..adapters import Adapter, Span
from .gather import take
from .hooks import Hook
from .picture import Picture
from .prefill import Method, Prefill


class TextReader:
    """Keeps the queries of the scoring text tokens, and all keys, of the layer below the next stage."""

    def __init__(self, adapter: Adapter, method: Method) -> None:
        self.adapter, self.method = adapter, method

    def attach(self, layers: Sequence[int], running: Callable[[], Prefill | None]) -> list[RemovableHandle]:
        """Put the hooks on the layers below those of the stages; `running` tells which prefill is on its way."""
        handles = []
        for below in {layer - 1 for layer in layers if layer > 0 and self.method.text_rows is not None}:
            query, key = self.adapter.text.projections(below)
            handles.append(query.register_forward_hook(Hook(self._capture("queries", running))))
            handles.append(key.register_forward_hook(Hook(self._capture("keys", running))))
        return handles

    def _capture(self, name: str, running: Callable[[], Prefill | None]) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            if (prefill := running()) is not None:
                prefill.captured[name] = take(output, prefill.asked_slots(), dim=1) if name == "queries" else output

        return hook

    def readable(
        self, prefill: Prefill, layer: int, hidden: Tensor, embeddings: tuple[Tensor, Tensor], positions: Any
    ) -> list[Picture]:
        """The pictures of a prompt at a stage, with what a method may read there; nothing is computed before it does.

        Args:
            layer: The stage's. hidden: (B, S', D) its input. embeddings: (cos, sin) of its rotary positions. positions: These
                themselves, None where the model keeps them to itself.
        """
        slots, found = prefill.remaining.slots(), zip(prefill.spans, prefill.pictures, strict=True)
        pictures = [self._with_states(prefill, layer, hidden, slots, span, picture) for span, picture in found]
        if self.method.text_rows is None:
            return pictures
        source = max(layer - 1, 0)
        embeddings = self.adapter.text.positions(source, embeddings, hidden, positions)
        relevance = cache(lambda: self._relevance(prefill, layer, hidden, embeddings, self._raters(prefill, pictures)))

        def reader(span: Span) -> Callable[[], Tensor]:
            return lambda: relevance()[span.row, span.positions.to(hidden.device)]

        return [replace(p, read_relevance=reader(span)) for span, p in zip(prefill.spans, pictures, strict=True)]

    def _with_states(
        self, prefill: Prefill, layer: int, hidden: Tensor, slots: Tensor, span: Span, picture: Picture
    ) -> Picture:
        @cache
        def states() -> Tensor:
            first, last = int(span.positions[0]), int(span.positions[-1])
            in_order = not prefill.remaining.shorter and bool((span.positions.diff() == 1).all())
            if in_order:  # nothing has left: no need to copy
                return hidden[span.row, first : last + 1]
            places = span.positions.to(hidden.device)
            return hidden[span.row, slots[span.row, places[picture.alive.to(places.device)]]]

        def text() -> Tensor:
            return hidden[span.row, slots[span.row, prefill.asked_places[span.row, prefill.asked_valid[span.row]]]]

        def keys() -> Tensor:
            own = states()[None]
            return self.adapter.text.plain_keys(layer, self.adapter.text.project(layer, own[:, :0], own)[1])[0]

        return replace(picture, read_states=states, read_text=text, read_keys=keys)

    def _raters(self, prefill: Prefill, pictures: list[Picture]) -> Tensor:
        """(B, R) bool: the text tokens whose attention counts; with several pictures in a row, those of any."""
        chosen: dict[int, Tensor] = {}
        for span, picture in zip(prefill.spans, pictures, strict=True):
            raters = self.method.raters(picture)
            if raters is not None:
                chosen[span.row] = chosen.get(span.row, raters) | raters
        valid = prefill.asked_valid.clone()
        for row, raters in chosen.items():
            valid[row, prefill.asked_valid[row]] = raters.to(valid.device)
        return valid

    def _relevance(
        self, prefill: Prefill, layer: int, hidden: Tensor, embeddings: tuple[Tensor, Tensor], raters: Tensor
    ) -> Tensor:
        """(B, S) attention from the text on every new token, zero for those already gone; softmax over all that was seen."""
        rows, text, held, remaining = prefill.asked_slots(), self.adapter.text, prefill.held, prefill.remaining
        source = max(layer - 1, 0)
        if layer == 0:
            queries, keys = text.project(0, take(hidden, rows, dim=1), hidden)
        else:
            queries, keys = prefill.captured.pop("queries"), prefill.captured.pop("keys")
        cos, sin = embeddings
        queries = text.queries(source, queries, take(cos, rows, dim=1), take(sin, rows, dim=1))
        keys = text.keys(source, keys, cos, sin)
        cached = held.valid.shape[1]
        if cached and prefill.cache is not None:
            earlier: Any = prefill.cache.layers[source]
            keys = torch.cat([earlier.keys[:, :, :cached], keys], dim=2)
        valid = torch.cat([held.valid, remaining.valid], dim=1)
        reach, window = None, text.reach(source)
        if window is not None:  # counted in the unpruned sequence
            places = torch.cat([held.places, held.seen + remaining.places], dim=1)
            reach = held.seen + prefill.asked_places[:, :, None] - places[:, None] < window
        scores = scoring.instruction_relevance(
            queries, keys, rows + cached, raters, valid, text.scale(source), self.method.text_reduce, reach
        )[:, cached:]
        unpruned = scores.new_zeros(prefill.input_ids.shape)
        return unpruned.scatter_add_(1, remaining.places, scores * remaining.valid)
