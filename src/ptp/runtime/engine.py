"""The hooks that prune a prefill inside a running model. Knows no method and no model family.

One forward pass goes through them in this order: `core` (what is in the prompt), `vision` (signals of the encoder),
`language` (padding, positions), then each decoder layer: at a stage's layer the sequence is shortened, and every
later layer gets the short mask and positions. Nothing but hooks is put on the model, and `detach` removes them.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel
from transformers.masking_utils import create_causal_mask

from ..adapters import Adapter
from ..adapters.instruction import TurnMarkers, pad_rows
from ..selection import Selection
from .cache import RECORD, Record, cache_bytes, check_cache, compact_cache, continue_from
from .call import Call, Method, StageLike
from .compaction import Slots, compact, merge, take
from .text import TextReader
from .trace import ImageTrace, Trace
from .vision import VisionReader


class Engine:
    """Prunes every prefill of `model` while attached."""

    def __init__(self, model: PreTrainedModel, adapter: Adapter, method: Method, markers: TurnMarkers | None) -> None:
        self.model, self.adapter, self.method, self.markers = model, adapter, method, markers
        self.trace = Trace()
        self.call: Call | None = None
        self.record: Record | None = None  # of the cache this call decodes from
        self.stages = method.stages(len(adapter.layers))
        self.vision = VisionReader(adapter, method.vision_layers)
        self.text = TextReader(adapter, method)
        self.handles: list[RemovableHandle] = []

    def attach(self) -> None:
        """Put the hooks on the model."""
        adapter, handles = self.adapter, self.handles
        handles.append(self.model.register_forward_pre_hook(self._refuse_labels, with_kwargs=True))
        handles.append(adapter.core.register_forward_pre_hook(self._enter_core, with_kwargs=True))
        handles.append(adapter.core.register_forward_hook(self._leave_core, always_call=True))
        handles.append(adapter.language.register_forward_pre_hook(self._enter_language, with_kwargs=True))
        handles.append(adapter.language.register_forward_hook(self._leave_language))
        handles.extend(self.vision.attach())
        first = min(stage.layer for stage in self.stages)
        for number, layer in enumerate(adapter.layers):
            if number >= first:
                handles.append(layer.register_forward_pre_hook(self._enter_layer(number), with_kwargs=True))
        handles.extend(self.text.attach([stage.layer for stage in self.stages], lambda: self.call))

    def detach(self) -> None:
        """Remove every hook; the model is as it was."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        self._forget()

    def _forget(self) -> None:
        self.call = self.record = None
        self.vision.forget()
        self.text.forget()

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
        if self.method.text_rows == "last":
            order = torch.arange(input_ids.shape[1], device=input_ids.device)
            chosen = order == torch.where(padding.bool(), order, -1).amax(dim=1, keepdim=True)
        elif self.method.text_rows == "instruction" and self.markers is not None:
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

    def _enter_layer(self, number: int) -> Callable[..., Any]:
        stages = [stage for stage in self.stages if stage.layer == number]

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
        seen = self.text.readable(call, stage.layer, hidden, embeddings)
        selections = [self.method.select(picture, stage) for picture in seen]
        keep = call.padding.clone()
        for span, selection in zip(call.spans, selections, strict=True):
            keep[span.row, span.start : span.start + span.tokens] = False
            keep[span.row, span.start + selection.kept.to(keep.device)] = True
        places = call.places()
        for number, (span, selection) in enumerate(zip(call.spans, selections, strict=True)):
            if selection.merged is not None:
                alive = call.pictures[number].alive
                own, target = (places[span.row, span.start + index.to(places.device)] for index in (alive, selection.kept))
                hidden = merge(hidden, span.row, own, selection.merged[alive], target, selection.kept)
            call.pictures[number] = replace(call.pictures[number], alive=selection.kept)
        self._record_trace(call, stage.layer, selections)
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

    def _record_trace(self, call: Call, layer: int, selections: list[Selection]) -> None:
        images = []
        for span, picture, selection in zip(call.spans, call.pictures, selections, strict=True):
            positions = torch.arange(span.start, span.start + span.tokens)
            kept = selection.kept.cpu()
            scores = {name: score.detach().float().cpu() for name, score in selection.scores.items()}
            images.append(
                ImageTrace(span.row, span.tokens, picture.grid, span.sizes, selection.budgets, kept, positions, scores)
            )
        self.trace.images = images
        before, after = sum(image.num_tokens for image in images), sum(len(image.kept) for image in images)
        self.trace.visual_tokens = (before, after)
        below = self.trace.layer_tokens[:layer] if layer > self.stages[0].layer else (before,) * layer
        self.trace.layer_tokens = (*below, *(after,) * (len(self.adapter.layers) - layer))

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
