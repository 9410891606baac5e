"""Reading the language model while it prefills: what the text tokens pay attention to, and what the pictures have become."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .. import scoring
from ..adapters import Adapter, Span
from ..adapters.text import Part, TextModel
from ..errors import UnsupportedModelError
from .gather import take, take_positions
from .hooks import Hook
from .picture import Picture
from .prefill import Prefill
from .reads import TextProbe, no_attention
from .remaining import Remaining


@dataclass
class AtStage:
    """A prefill at the input of the layer where tokens are about to leave; what the probe sees is worked out when asked for.

    Attributes:
        layer: The layer. hidden: (B, S', D) its input.
        embeddings: (cos, sin) of the rotary positions of all new tokens, (B or 1, S, ...) or (axes, B or 1, S, D).
        positions: These themselves, None where the model keeps them to itself.
    """

    adapter: Adapter
    probe: TextProbe | None
    prefill: Prefill
    layer: int
    hidden: Tensor
    embeddings: tuple[Tensor, Tensor]
    positions: Any
    _attention: dict[Any, Tensor] = field(default_factory=dict)

    @cached_property
    def slots(self) -> Tensor:
        """(B, S) the slot of the token at each place."""
        return self.prefill.remaining.slots()

    @cached_property
    def source(self) -> int:
        """The layer whose queries and keys the probe compares.

        Raises:
            UnsupportedModelError: there is none.
        """
        assert self.probe is not None
        attending = self.adapter.text.attending
        if (found := self.probe.source(self.layer, attending)) is None:
            raise no_attention(self.layer, attending)
        return found

    @cached_property
    def seen(self) -> Remaining:
        """The tokens that the layer saw whose queries and keys the probe compares."""
        captured = None if self.source == self.layer else self.prefill.captured_of
        return captured or self.prefill.remaining

    def attention(self, row: int, chosen: Tensor | None) -> Tensor:
        """(S,) attention in one batch row on every new token, zero for those already gone.

        Args:
            chosen: (R,) bool, those of the row's probed text tokens that count; None is all.
        """
        if chosen is None:
            if None not in self._attention:
                self._attention[None] = self._score(self.prefill.asked_valid, slice(None))
            return self._attention[None][row]
        valid = torch.zeros_like(self.prefill.asked_valid)
        valid[row, : self.prefill.host.counts[row]] = chosen.to(valid.device)
        return self._score(valid, slice(row, row + 1))[0]

    def keys(self, row: int, slots: Tensor) -> Tensor:
        """(n, heads * width) the keys that the probe compares, of the tokens in some slots (n,) of a batch row.

        In a padded row rotary positions are counted from its first token, so that padding changes no key.
        """
        assert self.probe is not None
        keys, seen, text = self._compared[1], self.seen, self.adapter.text
        places = self.prefill.remaining.places
        slots = seen.slots()[row, places[row, slots.to(places.device)]].to(keys.device)
        keys = keys[row : row + 1, :, keys.shape[2] - seen.places.shape[1] + slots]
        if self.probe.rotary and not bool(seen.valid[row].all()):
            first = seen.valid[row].int().argmax()
            cos, sin = (part[..., min(row, part.shape[-3] - 1), first, :][..., None, None, :] for part in self._turns)
            length = (cos.square() + sin.square()).sqrt()  # models that see far scale both
            keys = text.rotate(keys, cos / length, -sin / length)
        return keys[0].transpose(0, 1).flatten(1)

    @cached_property
    def _turns(self) -> tuple[Tensor, Tensor]:
        """(cos, sin) of what the probed layer saw, (B or 1, S', ...)."""
        given, places = map(self.seen.shorten, (self.embeddings, self.positions))
        cos, sin = self.adapter.text.positions(self.source, given, self.hidden, places)
        return cos.to(self.hidden.device), sin.to(self.hidden.device)  # layers may lie on devices of their own

    def _score(self, valid: Tensor, rows: slice) -> Tensor:
        """Attention (.., S) in some batch rows, from the True ones of the probed text tokens (B, R); softmax over all seen."""
        assert self.probe is not None
        prefill, text, source = self.prefill, self.adapter.text, self.source
        held, remaining = prefill.held, self.seen
        queries, keys, weights = self._compared
        cached = keys.shape[2] - remaining.places.shape[1]
        visible = torch.cat([held.valid[:, :cached], remaining.valid], dim=1)
        reach, window = None, text.reach(source)
        if window is not None:  # counted in the unpruned sequence
            places = torch.cat([held.places[:, :cached], held.seen + remaining.places], dim=1)
            reach = (held.seen + prefill.asked_places[:, :, None] - places[:, None] < window)[rows]
        slots, scale = prefill.asked_slots(remaining) + cached, text.scale(source)
        weights = None if weights is None else weights[rows]
        scores = scoring.instruction_relevance(
            queries[rows], keys[rows], slots[rows], valid[rows], visible[rows], scale, self.probe.reduce, reach, weights
        )[:, cached:]
        unpruned = scores.new_zeros(len(scores), prefill.input_ids.shape[1])
        unpruned.scatter_add_(1, remaining.places[rows], scores * remaining.valid[rows])
        return unpruned if remaining.places is prefill.remaining.places else unpruned * prefill.remaining.hold()[rows]

    @cached_property
    def _compared(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Queries (B, H, R, D), keys (B, H / g, held + S', D), and the values' norms (B, H / g, held + S') where they weigh."""
        assert self.probe is not None
        prefill, text, source, probe = self.prefill, self.adapter.text, self.source, self.probe
        rows, parts, name = prefill.asked_slots(self.seen), projected(text, probe, source), text.shared(source)
        if source == self.layer:
            normed = text.normed(source, self.hidden)
            outputs: dict[Part, Tensor] = {part: text.projection(source, part)(normed) for part in parts if part != "q"}
            outputs["q"] = text.projection(source, "q")(take(normed, rows, dim=1))
        else:
            outputs = prefill.captured
        queries = text.heads(source, outputs["q"], "q")
        if probe.rotary:
            cos, sin = self._turns
            queries = text.rotate(queries, take_positions(cos, rows), take_positions(sin, rows))
            places = self.seen.shorten(self.positions)
            queries = text.at_places(queries, None if places is None else take_positions(places, rows))
        if name is not None:  # at their positions, behind those of the cache
            keys, values = prefill.shared[name]
            norms = values.float().norm(dim=-1) if probe.values else None
            if not probe.rotary:
                new = prefill.held.valid.shape[1]
                keys, norms = unturned(text, keys[:, :, new:], *self._turns), None if norms is None else norms[:, :, new:]
            return queries, keys, norms
        keys = text.heads(source, outputs["k"], "k")
        norms = text.heads(source, outputs["v"], "v").float().norm(dim=-1) if probe.values else None
        if probe.rotary:
            keys = text.rotate(keys, cos, sin)
            cached = prefill.held.valid.shape[1]
            if cached and prefill.cache is not None:
                earlier: Any = prefill.cache.layers[source]
                keys = torch.cat([earlier.keys[:, :, :cached], keys], dim=2)
                if norms is not None:
                    norms = torch.cat([earlier.values[:, :, :cached].float().norm(dim=-1), norms], dim=2)
        return queries, keys, norms


def projected(text: TextModel, probe: TextProbe, layer: int) -> tuple[Part, ...]:
    """What of a layer's projections the probe compares; keys and values that are an earlier layer's are found there."""
    return probe.parts if text.shared(layer) is None else ("q",)


def unturned(text: TextModel, keys: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Keys (B, H, S, D) without the rotary positions that they carry, (cos, sin) (B or 1, S, D)."""
    square = cos.square() + sin.square()  # models that see far scale both
    return text.rotate(keys, cos / square, -sin / square)


@dataclass(frozen=True)
class PictureReadings:
    """What a method may read of one picture at a stage (`picture.Readings`)."""

    stage: AtStage
    span: Span
    alive: Tensor

    def states(self) -> Tensor:
        """(N', D) hidden states of the tokens alive."""
        hidden, positions = self.stage.hidden, self.span.positions
        if not self.stage.prefill.remaining.shorter and bool((positions.diff() == 1).all()):  # all there, in order: no copy
            return hidden[self.span.row, int(positions[0]) : int(positions[-1]) + 1]
        return hidden[self.span.row, self._slots()]

    def _slots(self) -> Tensor:
        """(N',) the slots of the tokens alive."""
        slots = self.stage.slots
        places = self.span.positions.to(slots.device)[self.alive.to(slots.device)]
        return slots[self.span.row, places].to(self.stage.hidden.device)

    def _asked(self) -> Tensor:
        """(R,) the slots of the probed text tokens."""
        row, prefill = self.span.row, self.stage.prefill
        places = prefill.asked_places[row, : prefill.host.counts[row]]
        return self.stage.slots[row, places].to(self.stage.hidden.device)

    def normed(self, states: Tensor) -> Tensor:
        """What the norm behind the last layer makes of hidden states."""
        return self.stage.adapter.text.last_norm(states).to(states.device)

    def keys(self) -> Tensor:
        """(N', heads * width) keys of the tokens alive that the probe compares; without one as `Picture.keys` says."""
        if self.stage.probe is not None:
            return self.stage.keys(self.span.row, self._slots())
        text, layer = self.stage.adapter.text, self.stage.layer
        if layer not in text.attending:
            raise UnsupportedModelError(
                f"Layer {layer} does not attend: it has no keys to read. Prune at one that does: "
                f"{', '.join(map(str, text.attending))}."
            )
        if (name := text.shared(layer)) is None:
            output = text.projection(layer, "k")(text.normed(layer, self.states()[None]))
            keys = text.heads(layer, output, "k")
        else:
            prefill, row, slots = self.stage.prefill, self.span.row, self._slots()[None]
            carried = prefill.shared[name][0][row : row + 1, :, prefill.held.valid.shape[1] :]
            given = prefill.remaining.shorten(self.stage.embeddings)
            turns = (take_positions(part[min(row, len(part) - 1), None], slots) for part in given)
            keys = unturned(text, take(carried, slots, dim=2), *turns)
        return keys.transpose(1, 2).flatten(2)[0]

    def text_keys(self) -> Tensor:
        """(R, heads * width) keys of the probed text tokens."""
        self._need_probe()
        return self.stage.keys(self.span.row, self._asked())

    def text_states(self) -> Tensor:
        """(R, D) hidden states of the probed text tokens."""
        self._need_probe()
        return self.stage.hidden[self.span.row, self._asked()]

    def inputs(self) -> Tensor:
        """(N, D) of all its visual tokens, at the input of the first layer."""
        first = self._first()
        return first[self.span.row, self.span.positions.to(first.device)].to(self.stage.hidden.device)

    def text_inputs(self) -> Tensor:
        """(R, D) of the probed text tokens, at the input of the first layer."""
        row, prefill = self.span.row, self.stage.prefill
        self._need_probe()
        first = self._first()
        places = prefill.asked_places[row, : prefill.host.counts[row]].to(first.device)
        return first[row, places].to(self.stage.hidden.device)

    def _first(self) -> Tensor:
        """(B, S, D) what the first layer was given."""
        if self.stage.prefill.inputs is None:
            raise ValueError("No inputs were asked for. Return Reads(inputs=True) from the method's `reads`.")
        return self.stage.prefill.inputs

    def text_attention(self, rows: Tensor | None) -> Tensor:
        """(N,) attention from the probed text tokens, or from some of them; zero for tokens that left."""
        self._need_probe()
        attention = self.stage.attention(self.span.row, rows)
        return attention[self.span.positions.to(attention.device)]

    def _need_probe(self) -> None:
        if self.stage.probe is None:
            raise ValueError("No text was asked for. Return Reads(probe=TextProbe(...)) from the method's `reads`.")


class TextReader:
    """Keeps what the layers below the stages project, as far as the probe wants it."""

    def __init__(self, adapter: Adapter, probe: TextProbe | None) -> None:
        self.adapter, self.probe = adapter, probe

    def attach(self, layers: Sequence[int], running: Callable[[], Prefill | None]) -> Iterator[RemovableHandle]:
        """Put the hooks on the layers below those of the stages, one by one; `running` tells which prefill is on its way."""
        if self.probe is None:
            return
        sources = {layer: self.probe.source(layer, self.adapter.text.attending) for layer in layers}
        for below in {source for layer, source in sources.items() if source is not None and source != layer}:
            for part in projected(self.adapter.text, self.probe, below):
                module = self.adapter.text.projection(below, part)
                yield module.register_forward_hook(Hook(self._capture(part, running)))

    def _capture(self, part: Part, running: Callable[[], Prefill | None]) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            if (prefill := running()) is not None:
                prefill.captured[part] = take(output, prefill.asked_slots(), dim=1) if part == "q" else output
                prefill.captured_of = prefill.remaining.as_now()

        return hook

    def readable(
        self, prefill: Prefill, layer: int, hidden: Tensor, embeddings: tuple[Tensor, Tensor], positions: Any
    ) -> list[Picture]:
        """The pictures of a prompt at a stage, with what a method may read there (arguments as `AtStage`'s)."""
        stage = AtStage(self.adapter, self.probe, prefill, layer, hidden, embeddings, positions)
        found = zip(prefill.spans, prefill.pictures, strict=True)
        return [replace(picture, readings=PictureReadings(stage, span, picture.alive)) for span, picture in found]
