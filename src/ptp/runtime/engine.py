"""The hooks that prune a prefill inside a running model. Knows no method and no model family.

One forward pass goes through them in this order: `core` (what is in the prompt), `vision` (signals of the encoder),
`language` (padding, positions), then each decoder layer: at a stage's layer the sequence is shortened, and every
later layer gets the short mask and positions. Nothing but hooks is put on the model, and `detach` removes them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel
from transformers.masking_utils import create_causal_mask

from .. import scoring
from ..adapters import Adapter, Span
from ..adapters.instruction import TurnMarkers, pad_rows
from ..selection import Selection
from .cache import RECORD, Record, cache_bytes, check_cache, compact_cache, continue_from
from .compaction import Slots, compact, take
from .picture import Picture
from .trace import ImageTrace, Trace
from .vision import VisionReader


class StageLike(Protocol):
    """A stage, as far as the runtime cares."""

    @property
    def layer(self) -> int: ...


class Method(Protocol):
    """A pruning method, as far as the runtime cares."""

    @property
    def stages(self) -> tuple[StageLike, ...]: ...
    @property
    def vision_layer(self) -> int | None: ...
    @property
    def uses_instruction(self) -> bool: ...
    def select(self, picture: Picture, stage: Any) -> Selection: ...


@dataclass
class Call:
    """State of one prefill on its way through the layers."""

    input_ids: Tensor
    spans: list[Span]
    encoded: Any  # the encoder's output the caller passed, None if it is made in this call
    instruction: Tensor  # (B, R) positions of the instruction tokens in the unpruned sequence
    instruction_valid: Tensor  # (B, R)
    padding: Tensor = field(init=False)  # (B, S) bool, True = token
    position_ids: Tensor = field(init=False)  # (B, S)
    slots: Slots = field(init=False)  # of the current sequence, in the unpruned one
    pictures: list[Picture] = field(default_factory=list)
    queries: Tensor | None = None  # instruction rows of the layer below the next stage
    keys: Tensor | None = None
    short: dict[str, Any] | None = None  # what later layers get instead of the full-length arguments


class Engine:
    """Prunes every prefill of `model` while attached."""

    def __init__(self, model: PreTrainedModel, adapter: Adapter, method: Method, markers: TurnMarkers | None) -> None:
        self.model, self.adapter, self.method, self.markers = model, adapter, method, markers
        self.trace = Trace()
        self.call: Call | None = None
        self.record: Record | None = None  # of the cache this call decodes from
        self.vision = VisionReader(adapter, method.vision_layer)
        self.handles: list[RemovableHandle] = []

    def attach(self) -> None:
        """Put the hooks on the model."""
        adapter, method, handles = self.adapter, self.method, self.handles
        handles.append(self.model.register_forward_pre_hook(self._refuse_labels, with_kwargs=True))
        handles.append(adapter.core.register_forward_pre_hook(self._enter_core, with_kwargs=True))
        handles.append(adapter.core.register_forward_hook(self._leave_core, always_call=True))
        handles.append(adapter.language.register_forward_pre_hook(self._enter_language, with_kwargs=True))
        handles.append(adapter.language.register_forward_hook(self._leave_language))
        handles.extend(self.vision.attach())
        first = min(stage.layer for stage in method.stages)
        for number, layer in enumerate(adapter.layers):
            if number >= first:
                handles.append(layer.register_forward_pre_hook(self._enter_layer(number), with_kwargs=True))
        if method.uses_instruction:
            for below in {stage.layer - 1 for stage in method.stages if stage.layer > 0}:
                where = adapter.text_attention(below)
                handles.append(where.query.register_forward_hook(self._capture_text("queries")))
                handles.append(where.key.register_forward_hook(self._capture_text("keys")))

    def detach(self) -> None:
        """Remove every hook; the model is as it was."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        self._forget()

    def _forget(self) -> None:
        self.call = self.record = None
        self.vision.forget()

    # -- the prompt ----------------------------------------------------------------------------------------------

    def _refuse_labels(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if kwargs.get("labels") is not None:
            raise ValueError(
                "labels cannot be used while visual tokens are pruned: logits exist for kept tokens only. Detach first."
            )
        if isinstance(kwargs.get("logits_to_keep"), Tensor):
            raise ValueError(
                "logits_to_keep must be a number while visual tokens are pruned, got a tensor of positions. "
                "Pass how many of the last logits you want."
            )

    def _enter_core(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._forget()
        input_ids: Any = kwargs.get("input_ids", args[0] if args else None)
        encoded = kwargs.get("mm_encoder_outputs") or {}
        cache = kwargs.get("past_key_values")
        record = getattr(cache, RECORD, None)
        has_pictures = kwargs.get("pixel_values") is not None or encoded.get("image") is not None
        if not has_pictures:
            prefills = record is None and input_ids is not None and input_ids.shape[1] > 1
            if prefills and self.adapter.locate(input_ids):
                raise ValueError(
                    "The prompt has image tokens but no pictures came with it: they would be read as words. Pass the pictures, "
                    "and no prefill_chunk_size."
                )
            self.record = record
            if cache is None or cache.get_seq_length() == 0:
                self.trace.clear()
            return
        if input_ids is None:
            raise ValueError("Pictures need input_ids, so that their tokens can be found. Pass input_ids, not inputs_embeds.")
        mask = kwargs.get("attention_mask")
        check_cache(cache, record)
        if mask is not None and not (isinstance(mask, Tensor) and mask.dim() == 2):
            raise ValueError(
                "attention_mask must be (B, S) while visual tokens are pruned. Pass the processor's mask unchanged."
            )
        spans = self.adapter.locate(input_ids)
        padding = torch.ones_like(input_ids) if mask is None else mask
        chosen = torch.zeros_like(input_ids, dtype=torch.bool)
        if self.method.uses_instruction and self.markers is not None:
            chosen = self.markers.mask(input_ids, padding)
        self.call = Call(input_ids, spans, encoded.get("image"), *pad_rows(chosen))
        self.call.padding = padding.bool()

    def _leave_core(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._forget()

    # -- the language model --------------------------------------------------------------------------------------

    def _enter_language(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.record is not None:
            return args, kwargs | continue_from(self.record, kwargs)
        call = self.call
        if call is None:
            return None
        batch, length = call.input_ids.shape
        order = torch.arange(length, device=call.input_ids.device).expand(batch, -1)
        positions = kwargs.get("position_ids")
        call.position_ids = order if positions is None else positions.expand(batch, -1)
        call.slots = Slots(order, call.padding)
        call.pictures = self.vision.pictures(call.spans, batch, call.encoded)
        return None

    def _capture_text(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            call = self.call
            if call is None:
                return
            if name == "queries":
                output = take(output, self._instruction_slots(call), dim=1)
            setattr(call, name, output)

        return hook

    def _instruction_slots(self, call: Call) -> Tensor:
        """(B, R) where the instruction tokens, never dropped, are in the current sequence."""
        place = torch.zeros_like(call.input_ids)
        order = torch.arange(call.slots.index.shape[1], device=place.device).expand_as(call.slots.index)
        place.scatter_reduce_(1, call.slots.index, order * call.slots.valid, reduce="amax")
        return place.gather(1, call.instruction)

    def _enter_layer(self, number: int) -> Callable[..., Any]:
        stages = [stage for stage in self.method.stages if stage.layer == number]

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            call = self.call
            if call is None:
                return None
            hidden = args[0] if args else kwargs["hidden_states"]
            for stage in stages:
                hidden = self._prune(call, stage, hidden, kwargs)
            if call.short is None:
                return None
            if args:
                return (hidden, *args[1:]), kwargs | call.short
            return args, kwargs | call.short | {"hidden_states": hidden}

        return hook

    def _prune(self, call: Call, stage: StageLike, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
        embeddings = call.short["position_embeddings"] if call.short else kwargs["position_embeddings"]
        relevance = self._relevance(call, stage.layer, hidden, embeddings) if self.method.uses_instruction else None
        keep = call.padding.clone()
        selections, alive = [], []
        for span, picture in zip(call.spans, call.pictures, strict=True):
            own = slice(span.start, span.start + span.tokens)
            mine = None if relevance is None else relevance[span.row, own].to(picture.attention.device)
            seen = replace(picture, relevance=mine)
            selection = self.method.select(seen, stage)
            kept = selection.kept.to(keep.device)
            keep[span.row, own] = False
            keep[span.row, span.start + kept] = True
            alive.append(replace(picture, alive=selection.kept))
            selections.append(selection)
        call.pictures = alive
        self._record_trace(call, selections)
        stays = keep.gather(1, call.slots.index) & call.slots.valid
        if bool((stays == call.slots.valid).all()):
            return hidden  # nothing leaves: the model runs exactly as it would alone
        slots = compact(stays)
        call.slots = Slots(call.slots.index.gather(1, slots.index), slots.valid)
        hidden = take(hidden, slots.index, dim=1)
        cache = kwargs.get("past_key_values")
        if cache is not None:
            compact_cache(cache, stage.layer, slots.index)
        mask = create_causal_mask(
            config=self.adapter.language.config,
            inputs_embeds=hidden,
            attention_mask=slots.valid.long() if slots.padded else None,
            past_key_values=None,
        )
        call.short = {
            "attention_mask": mask,
            "position_ids": call.position_ids.gather(1, call.slots.index),
            "position_embeddings": tuple(take(part, slots.index, dim=1) for part in embeddings),
        }
        return hidden

    def _relevance(self, call: Call, layer: int, hidden: Tensor, embeddings: tuple[Tensor, Tensor]) -> Tensor:
        """(B, S) instruction relevance of every token of the unpruned sequence, zero for those already gone."""
        rows = self._instruction_slots(call)
        where = self.adapter.text_attention(max(layer - 1, 0))
        if layer == 0:
            queries, keys = self.adapter.probe(0, take(hidden, rows, dim=1), hidden)
        else:
            assert call.queries is not None and call.keys is not None  # captured in the layer below
            queries, keys = call.queries, call.keys
        call.queries = call.keys = None
        batch, count = rows.shape
        queries = queries.reshape(batch, count, where.heads, -1).transpose(1, 2)
        keys = keys.reshape(batch, hidden.shape[1], where.key_heads, -1).transpose(1, 2)
        cos, sin = embeddings
        queries = self.adapter.rotate(queries, take(cos, rows, dim=1), take(sin, rows, dim=1))
        keys = self.adapter.rotate(keys, cos, sin)
        scores = scoring.instruction_relevance(queries, keys, rows, call.instruction_valid, call.slots.valid, where.scale)
        unpruned = scores.new_zeros(call.input_ids.shape)
        return unpruned.scatter_add_(1, call.slots.index, scores * call.slots.valid)

    def _record_trace(self, call: Call, selections: list[Selection]) -> None:
        images = []
        for span, picture, selection in zip(call.spans, call.pictures, selections, strict=True):
            positions = torch.arange(span.start, span.start + span.tokens)
            kept = selection.kept.cpu()
            scores = {name: score.detach().float().cpu() for name, score in selection.scores.items()}
            images.append(
                ImageTrace(span.row, span.tokens, picture.grid, span.sizes, selection.budgets, kept, positions, scores)
            )
        self.trace.images = images
        self.trace.visual_tokens = (sum(i.num_tokens for i in images), sum(len(i.kept) for i in images))

    def _leave_language(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        call = self.call
        if call is None:
            return
        before, after = call.input_ids.shape[1], call.slots.index.shape[1]
        cache = getattr(output, "past_key_values", None)
        size = cache_bytes(cache)
        self.trace.sequence_length = (before, after)
        self.trace.cache_bytes = (size // after * before, size)
        if cache is not None and call.short is not None:
            position = call.position_ids.masked_fill(~call.padding, -1).amax(dim=1, keepdim=True) + 1
            setattr(cache, RECORD, Record(before, call.slots.valid, call.slots.padded, position))
