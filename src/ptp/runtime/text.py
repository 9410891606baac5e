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
from .call import Call, Method
from .compaction import take
from .picture import Picture


class TextReader:
    """Keeps the queries of the scoring text tokens, and all keys, of the layer below the next stage."""

    def __init__(self, adapter: Adapter, method: Method) -> None:
        self.adapter, self.method = adapter, method
        self._captured: dict[str, Tensor] = {}

    def attach(self, layers: Sequence[int], call: Callable[[], Call | None]) -> list[RemovableHandle]:
        """Put the hooks on the layers below those of the stages; `call` tells which prefill is on its way."""
        handles = []
        for below in {layer - 1 for layer in layers if layer > 0 and self.method.text_rows is not None}:
            query, key = self.adapter.text.projections(below)
            handles.append(query.register_forward_hook(self._capture("queries", call)))
            handles.append(key.register_forward_hook(self._capture("keys", call)))
        return handles

    def forget(self) -> None:
        """Drop what was read."""
        self._captured.clear()

    def _capture(self, name: str, current: Callable[[], Call | None]) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            if (call := current()) is not None:
                self._captured[name] = take(output, call.text_places(), dim=1) if name == "queries" else output

        return hook

    def readable(
        self, call: Call, layer: int, hidden: Tensor, embeddings: tuple[Tensor, Tensor], positions: Any
    ) -> list[Picture]:
        """The pictures of a prompt at a stage, with what a method may read there; nothing is computed before it does.

        Args:
            layer: The stage's. hidden: (B, S', D) its input. embeddings: (cos, sin) of its rotary positions. positions: These
                themselves, None where the model keeps them to itself.
        """
        places = call.places()
        pictures = [
            self._with_states(call, layer, hidden, places, *pair) for pair in zip(call.spans, call.pictures, strict=True)
        ]
        if self.method.text_rows is None:
            return pictures
        source = max(layer - 1, 0)
        embeddings = self.adapter.text.positions(source, embeddings, hidden, positions)
        relevance = cache(lambda: self._relevance(call, layer, hidden, embeddings, self._raters(call, pictures)))

        def reader(span: Span) -> Callable[[], Tensor]:
            return lambda: relevance()[span.row, span.positions.to(hidden.device)]

        return [replace(p, read_relevance=reader(span)) for span, p in zip(call.spans, pictures, strict=True)]

    def _with_states(self, call: Call, layer: int, hidden: Tensor, places: Tensor, span: Span, picture: Picture) -> Picture:
        @cache
        def states() -> Tensor:
            first, last = int(span.positions[0]), int(span.positions[-1])
            if not call.pruned and bool((span.positions.diff() == 1).all()):  # nothing has left, in order: no need to copy
                return hidden[span.row, first : last + 1]
            here = span.positions.to(hidden.device)
            return hidden[span.row, places[span.row, here[picture.alive.to(here.device)]]]

        def text() -> Tensor:
            return hidden[span.row, places[span.row, call.text[span.row, call.text_valid[span.row]]]]

        def keys() -> Tensor:
            mine = states()[None]
            return self.adapter.text.plain_keys(layer, self.adapter.text.project(layer, mine[:, :0], mine)[1])[0]

        return replace(picture, read_states=states, read_text=text, read_keys=keys)

    def _raters(self, call: Call, pictures: list[Picture]) -> Tensor:
        """(B, R) bool: the text tokens whose attention counts; with several pictures in a row, those of any."""
        chosen: dict[int, Tensor] = {}
        for span, picture in zip(call.spans, pictures, strict=True):
            raters = self.method.raters(picture)
            if raters is not None:
                chosen[span.row] = chosen.get(span.row, raters) | raters
        valid = call.text_valid.clone()
        for row, raters in chosen.items():
            valid[row, call.text_valid[row]] = raters.to(valid.device)
        return valid

    def _relevance(self, call: Call, layer: int, hidden: Tensor, embeddings: tuple[Tensor, Tensor], raters: Tensor) -> Tensor:
        """(B, S) attention from the text on every new token, zero for those already gone; softmax over all that was seen."""
        rows, text = call.text_places(), self.adapter.text
        source = max(layer - 1, 0)
        if layer == 0:
            queries, keys = text.project(0, take(hidden, rows, dim=1), hidden)
        else:
            queries, keys = self._captured.pop("queries"), self._captured.pop("keys")
        cos, sin = embeddings
        queries = text.queries(source, queries, take(cos, rows, dim=1), take(sin, rows, dim=1))
        keys = text.keys(source, keys, cos, sin)
        past = call.past.shape[1]
        if past and call.cache is not None:
            earlier: Any = call.cache.layers[source]
            keys = torch.cat([earlier.keys[:, :, :past], keys], dim=2)
        valid = torch.cat([call.past, call.slots.valid], dim=1)
        reach, window = None, text.reach(source)
        if window is not None:  # counted in the unpruned sequence
            places = torch.cat([call.past_places, call.seen + call.slots.index], dim=1)
            reach = call.seen + call.text[:, :, None] - places[:, None] < window
        scores = scoring.instruction_relevance(
            queries, keys, rows + past, raters, valid, text.scale(source), self.method.text_reduce, reach
        )[:, past:]
        unpruned = scores.new_zeros(call.input_ids.shape)
        return unpruned.scatter_add_(1, call.slots.index, scores * call.slots.valid)
