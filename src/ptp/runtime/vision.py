"""Reading the vision encoder while it runs: its signals, and which of them belong to which picture of a prompt."""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .. import scoring
from ..adapters import Adapter, Modality, Span
from ..errors import UnsupportedModelError
from .compiled import uncompiled
from .encoding import EncoderRun, EncoderSavings, Savings
from .hooks import Hook, Shadow
from .picture import Picture, Vision, VisionSignal
from .prefill import Prefill
from .reads import AttentionKind, VisionRead
from .reuse import Entry, Signals, Wanted
from .running import Running
from .trace import EncoderTrace

SIGNALS = "ptp_signals"
"""Attribute of an encoder output that carries its `Vision`, so that encoded pictures can be reused."""


def resolve(adapter: Adapter, reads: Sequence[VisionRead]) -> tuple[VisionRead, ...]:
    """The same reads in this encoder: layers counted from the first, "either" as what it has.

    Raises:
        UnsupportedModelError: [CLS] is asked for and there is none.
    """
    own: AttentionKind = "cls" if adapter.has_cls else "received"
    if not adapter.has_cls and any(read.attention == "cls" for read in reads):
        raise UnsupportedModelError(
            f"The method reads [CLS] attention, and the encoder of {adapter.family} has no [CLS]. Choose a family with it, or "
            'a method that reads "either".'
        )
    kinds = [own if read.attention == "either" else read.attention for read in reads]
    layers = [read.layer if adapter.has_cls or read.layer_without_cls is None else read.layer_without_cls for read in reads]
    return tuple(
        replace(read, layer=layer % adapter.vision_depth, attention=kind, layer_without_cls=None)
        for read, layer, kind in zip(reads, layers, kinds, strict=True)
    )


def read_attention(
    adapter: Adapter, layer: int, kind: AttentionKind, queries: Tensor, keys: Tensor, about: Any = None
) -> list[Tensor]:
    """What a vision layer looks at, (P,) per unit, from what the modules of `vision_attention` put out.

    Args:
        kind: "cls", "received" or "logits".
    """
    scale, skip = adapter.vision_attention(layer).scale, int(adapter.has_cls)
    rows: list[Tensor] = []
    heads = adapter.received_heads if kind == "received" else adapter.heads
    for q, k in heads(layer, queries, keys, about):
        if kind == "cls":
            found = scoring.cls_attention(q, k, scale)
        elif kind == "logits":
            found = scoring.attention_logits(q[:, :, :1] if skip else q, k[:, :, skip:], scale)
        else:
            found = scoring.received_attention(q[:, :, skip:], k[:, :, skip:], scale)
        rows += found.unbind()
    return adapter.by_unit(layer, rows, about)


def read_keys(adapter: Adapter, layer: int, queries: Tensor, keys: Tensor, about: Any = None) -> list[Tensor]:
    """The keys of a vision layer, (P, D) per unit: the mean over heads, as VisionZip and others compare patches."""
    skip = int(adapter.has_cls)
    rows = [row for _, k in adapter.heads(layer, queries, keys, about) for row in k[:, :, skip:].float().mean(dim=1).unbind()]
    return adapter.by_unit(layer, rows, about)


def picture_of(adapter: Adapter, span: Span, vision: Vision, reads: Sequence[VisionRead]) -> Picture:
    """What a method may read of one picture.

    Args:
        reads: As `resolve` made them.
    """
    signals = []
    for read in reads:
        saliency = thumbnail = keys = None
        if read.attention is not None:
            rows = [vision.attention[read.layer, read.attention][unit] for unit in span.units]
            saliency, thumbnail = adapter.pool(rows, span), rows[-1] if span.layout.thumbnail else None
        if read.keys:
            parts = [vision.keys[read.layer][unit].unbind(dim=-1) for unit in span.units]
            keys = torch.stack([adapter.pool(column, span) for column in zip(*parts, strict=True)], dim=-1)
        signals.append(VisionSignal(saliency, thumbnail, keys))
    pixels = tuple(vision.pixels[unit] for unit in span.units)
    alive = torch.arange(span.layout.tokens, device=pixels[0].device)
    embeddings = torch.cat([vision.embeddings[unit] for unit in span.units]) if vision.embeddings else pixels[0].new_empty(0, 0)
    return Picture(span.layout, alive, tuple(signals), embeddings, pixels)


def _tokens(output: Any) -> int:
    """How many visual tokens a method that encodes put out."""
    features = output[1] if isinstance(output, tuple) else output.pooler_output
    parts = [features] if isinstance(features, Tensor) else features
    return sum(part.numel() // part.shape[-1] for part in parts)


class VisionReader:
    """Keeps the signals of each encoder run on the encoder's output, and in the prefill that it belongs to.

    Args:
        reads: What to read; with nothing, only what the tiles are found by.
        window: Side, in pixels, of the regions of pictures that are not cut into tiles.
        running: What the thread that runs the encoder is doing.
        savings: What is saved in the encoder.
    """

    def __init__(self, adapter: Adapter, reads: Sequence[VisionRead], window: int, running: Running, savings: Savings) -> None:
        self.adapter, self.window, self.running = adapter, window, running
        self.reads = resolve(adapter, reads)
        self._attention = {(read.layer, read.attention) for read in self.reads if read.attention is not None}
        self._keys = {read.layer for read in self.reads if read.keys}
        self._layers = {layer for layer, _ in self._attention} | self._keys
        wanted = Wanted(frozenset(self._attention), frozenset(self._keys))
        self._encoder = EncoderSavings(adapter, savings, wanted, lambda: running.encoding)

    def attach(self) -> Iterator[RemovableHandle | Shadow]:
        """Put the hooks on the encoder, one by one, and listen to the methods that run it."""
        adapter = self.adapter
        yield adapter.vision.register_forward_pre_hook(Hook(self._enter), with_kwargs=True)
        for layer in self._layers:
            where = adapter.vision_attention(layer)
            yield where.query.register_forward_hook(self._capture((layer, "query")))
            if where.key is not where.query:
                yield where.key.register_forward_hook(self._capture((layer, "key")))
        if self._layers:
            yield adapter.vision_embeddings().register_forward_hook(self._capture("embeddings"))
        yield from self._encoder.attach()
        for kind in adapter.modalities:
            yield Shadow(adapter.core, kind.method, self._listening(kind))

    def _listening(self, modality: Modality) -> Callable[..., Any]:
        """The method that encodes, listened to: only its arguments tell the pictures' sizes, and `generate` drops them."""
        encode, running = getattr(self.adapter.core, modality.method), self.running
        signature = inspect.signature(encode)
        own = getattr(encode, "__func__", None) is getattr(type(self.adapter.core), modality.method, encode)

        @functools.wraps(encode)
        def listening(*args: Any, **kwargs: Any) -> Any:
            if running.encoding is not None:  # one modality may be encoded as another
                return encode(*args, **kwargs)
            told = {name: value for name, value in kwargs.items() if name != "return_dict"}  # a decorator may take it
            inputs = signature.bind(*args, **told).arguments
            inputs |= inputs.pop("kwargs", {}) | {name: value for name, value in kwargs.items() if name not in told}
            running.encoding = run = self.begin(inputs, modality.name)
            try:
                entry = self._encoder.recall(run, own)
                if entry is not None:
                    output, vision = self._recalled(run, entry)
                else:
                    with uncompiled():
                        output = encode(*args, **kwargs)
                    before: Vision | None = getattr(output, SIGNALS, None)  # one that was encoded before has them
                    vision = before or self.read(run, output, _tokens(output))
            finally:
                running.encoding = None
            if running.prefill is not None:
                running.prefill.visions[modality.name] = vision
            if not isinstance(output, tuple):
                setattr(output, SIGNALS, vision)
            return output

        return listening

    def _capture(self, name: Any) -> Hook:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if self.running.encoding is not None:
                self.running.encoding.seen[name] = output[0] if isinstance(output, tuple) else output

        return Hook(hook)

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        run = self.running.encoding
        if run is not None:
            run.seen["pixels"] = args[0] if args else kwargs["pixel_values"]
            run.laid_out = self.adapter.about(run.inputs, self.window)  # now: a GPU is not waited for yet

    def begin(self, inputs: Mapping[str, Any], modality: str) -> EncoderRun:
        """What `running.encoding` is while the encoder runs on some pictures, given by name what its model was given."""
        return self._encoder.begin(inputs, (modality, self.window))

    def read(self, run: EncoderRun, output: Any, tokens: int) -> Vision:
        """The signals of an encoder run that is over, of which an `output` of so many visual tokens came."""
        about = run.laid_out
        pixels = self.adapter.shrink(run.seen["pixels"], about)
        signals, trace = self._encoder.finish(run, output, pixels, lambda: self._signals(run.seen, about))
        return self._vision(signals, pixels, about, tokens, trace)

    def _recalled(self, run: EncoderRun, entry: Entry) -> tuple[Any, Vision]:
        """What a call made that is not made again, and its signals."""
        output, trace = self._encoder.recalled(entry)
        about = self.adapter.about(run.inputs, self.window)
        return output, self._vision(entry.signals, entry.pixels, about, _tokens(output), trace)

    def _vision(self, signals: Signals, pixels: Sequence[Tensor], about: Any, tokens: int, trace: EncoderTrace) -> Vision:
        embeddings = signals.embeddings if self._layers else ()
        return Vision(signals.attention, signals.keys, embeddings, pixels, about, self.window, tokens, trace)

    def _signals(self, seen: dict[Any, Tensor], about: Any) -> Signals:
        """What is read of the units that the encoder ran on, from what its hooks have `seen`."""
        adapter = self.adapter
        pairs = {layer: (seen[layer, "query"], seen.get((layer, "key"), seen[layer, "query"])) for layer in self._layers}
        attention = {
            (layer, kind): read_attention(adapter, layer, kind, *pairs[layer], about) for layer, kind in self._attention
        }
        keys = {layer: read_keys(adapter, layer, *pairs[layer], about) for layer in self._keys}
        embeddings = adapter.embed(seen["embeddings"], about) if self._layers else ()
        return Signals(attention, keys, embeddings)

    def pictures(self, prefill: Prefill) -> list[tuple[Span, Picture]]:
        """The pictures of a prompt, batch row by batch row, in prompt order.

        Beams and num_return_sequences repeat each row after its pictures were encoded, and so may a caller who asks several
        questions about pictures encoded once; the copies share their pictures.

        Raises:
            ValueError: an encoder output carries no signals of what is read, or does not fit the prompt.
        """
        found: list[tuple[Span, Picture]] = []
        kinds, passed = self.adapter.modalities, {name for name, output in prefill.encoded.items() if output is not None}
        shown = {kind.token_id for kind in kinds if kind.name in passed or kind.name in prefill.visions}
        for modality in kinds:
            if modality.token_id in shown and modality.name not in passed and modality.name not in prefill.visions:
                continue  # the tokens are those of another modality, with the same id
            if bool((tokens := prefill.host.ids == modality.token_id).any()):
                output = prefill.encoded.get(modality.name)
                vision = prefill.visions.get(modality.name) if output is None else getattr(output, SIGNALS, None)
                found += self._find(prefill.host.ids, tokens, vision)
                prefill.encoder += vision.encoder if vision is not None else EncoderTrace()
        return sorted(found, key=lambda pair: (pair[0].row, int(pair[0].positions[0])))

    def _find(self, input_ids: Tensor, tokens: Tensor, vision: Vision | None) -> list[tuple[Span, Picture]]:
        """The pictures of one modality, whose visual tokens are the True entries of `tokens` (B, S); both are on the host."""
        if vision is None or not (self._attention <= set(vision.attention) and self._keys <= set(vision.keys)):
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
        ids, found = input_ids, list[tuple[Span, Picture]]()
        alike = torch.equal(ids, ids[::copies].repeat_interleave(copies, dim=0))
        spans, pictures = list[Span](), list[Picture]()
        for copy in range(copies):
            if not alike or not spans:  # rows that ask differently have their pictures in different places
                spans = self.adapter.locate(ids[copy::copies], tokens[copy::copies], vision.about, vision.pixels)
                pictures = pictures or [picture_of(self.adapter, span, vision, self.reads) for span in spans]
            found += [(replace(span, row=copies * span.row + copy), p) for span, p in zip(spans, pictures, strict=True)]
        return found
