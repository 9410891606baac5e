"""The hooks that prune a prefill inside a running model. Knows no method and no model family.

One forward pass goes through them in this order: `core` (what is in the prompt), the vision encoder (its signals),
`text` (which tokens are pictures), then each decoder layer: at a stage's layer the sequence is shortened, and every
later layer gets the short mask and positions. `detach` takes everything off the model again.
"""

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import DynamicCache, PreTrainedModel
from transformers.masking_utils import create_causal_mask

from ..adapters import Adapter
from ..adapters.instruction import TurnMarkers, pad_rows
from ..errors import UnsupportedModelError
from ..selection import Selection
from .cache import (
    Record,
    cache_bytes,
    check_cache,
    compact_cache,
    continue_from,
    finish_cache,
    held,
    held_places,
    record_of,
    window_masks,
)
from .call import Call, Method, StageLike
from .compaction import merge, take
from .compiled import refuse_compiled, uncompiled
from .text import TextReader
from .trace import ImageTrace, Trace
from .vision import VisionReader


class Engine:
    """Prunes every prefill of `model` while attached."""

    def __init__(self, model: PreTrainedModel, adapter: Adapter, method: Method, markers: TurnMarkers | None) -> None:
        self.model, self.adapter, self.method, self.markers = model, adapter, method, markers
        self.trace = Trace()
        self.call: Call | None = None
        self.stages = method.stages(len(adapter.layers))
        self.vision = VisionReader(adapter, method.vision_layers, method.window)
        self.text = TextReader(adapter, method)
        self.handles: list[RemovableHandle] = []
        self.eager = contextlib.ExitStack()

    def attach(self) -> None:
        """Put the hooks on the model."""
        refuse_compiled(self.model, self.adapter.core)
        adapter, handles = self.adapter, self.handles
        handles.append(self.model.register_forward_pre_hook(self._refuse_labels, with_kwargs=True))
        handles.append(adapter.core.register_forward_pre_hook(self._enter_core, with_kwargs=True))
        handles.append(adapter.core.register_forward_hook(self._leave_core, always_call=True))
        handles.append(adapter.text.model.register_forward_pre_hook(self._enter_language, with_kwargs=True))
        handles.append(adapter.text.model.register_forward_hook(self._leave_language))
        handles.extend(self.vision.attach())
        first = min(stage.layer for stage in self.stages)
        for number, layer in enumerate(adapter.layers):
            if number >= first:
                handles.append(layer.register_forward_pre_hook(self._enter_layer(number), with_kwargs=True))
            if adapter.late_features is not None:
                handles.append(layer.register_forward_hook(self._leave_layer(number)))
        handles.extend(self.text.attach([stage.layer for stage in self.stages], lambda: self.call))

    def detach(self) -> None:
        """Remove every hook; the model is as it was."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        self.vision.detach()
        self._forget()

    def _forget(self) -> None:
        self.eager.close()
        self.call = None
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

    def _enter_core(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        refuse_compiled(self.model, self.adapter.core)
        self._forget()
        input_ids: Any = kwargs.get("input_ids", args[0] if args else None)
        encoded = {name: output for name, output in (kwargs.get("mm_encoder_outputs") or {}).items() if output is not None}
        fresh = {name for name in ("pixel_values", "pixel_values_videos") if kwargs.get(name) is not None}
        cache, mask = kwargs.get("past_key_values"), kwargs.get("attention_mask")
        seen = cache.get_seq_length() if cache is not None else 0
        record = record_of(cache) if seen else None
        if record is not None:
            new = (input_ids if input_ids is not None else kwargs["inputs_embeds"]).shape[1]
            going_on = continue_from(record, cache, mask, new)
            kwargs = kwargs | {"attention_mask": self._window_masks(record, kwargs, new) or going_on}
            mask = going_on
        kinds = self.adapter.modalities
        if (fresh - {kind.pixels for kind in kinds}) or (encoded.keys() - {kind.name for kind in kinds}):
            raise UnsupportedModelError(
                f"Videos cannot be pruned in {self.adapter.family}. Pass frames as pictures, or detach the pruner first."
            )
        if fresh or encoded:
            self._expect_pictures(input_ids, encoded, cache, record, mask)
            return args, kwargs
        if input_ids is not None and input_ids.shape[1] > 1 and bool(self.adapter.visual_tokens(input_ids).any()):
            raise ValueError(
                "The prompt has image tokens but no pictures came with it: they would be read as words. Pass the pictures, "
                "and no prefill_chunk_size."
            )
        if not seen:
            self.trace.clear()
        return args, kwargs

    def _window_masks(self, record: Record, kwargs: dict[str, Any], new: int) -> dict[str, Tensor] | None:
        """For a model with sliding windows, the masks of tokens that follow a pruned cache."""
        text, cache, kinds = self.adapter.text, kwargs["past_key_values"], kwargs.get("token_type_ids")
        if text.window is None:
            return None
        blocks = torch.full((len(record.valid), new), -1)
        if kinds is not None:
            image = (kinds[:, -new:] == 1).cpu()
            blocks = torch.where(image, (image & ~torch.nn.functional.pad(image, (1, 0))[:, :-1]).cumsum(dim=1), blocks)
        eager = text.config._attn_implementation == "eager"
        return window_masks(record, cache, kwargs.get("attention_mask"), blocks, text.window, eager)

    def _expect_pictures(
        self, input_ids: Tensor | None, encoded: dict[str, Any], cache: Any, record: Record | None, mask: Any
    ) -> None:
        if input_ids is None:
            raise ValueError("Pictures need input_ids, so that their tokens can be found. Pass input_ids, not inputs_embeds.")
        windowed, attention = self.adapter.text.window is not None, self.adapter.text.config._attn_implementation
        if windowed and attention not in ("eager", "sdpa"):
            raise UnsupportedModelError(
                f"A model with sliding windows can be pruned under eager or sdpa attention, got {attention!r}. Load it with "
                'attn_implementation="sdpa".'
            )
        check_cache(cache, windowed)
        if mask is not None and not (isinstance(mask, Tensor) and mask.dim() == 2):
            raise ValueError(
                "attention_mask must be (B, S) while visual tokens are pruned. Pass the processor's mask unchanged."
            )
        (batch, length), slots = input_ids.shape, held(cache)
        if mask is None:
            valid = input_ids.new_ones(batch, slots + length, dtype=torch.bool)
        elif mask.shape[1] < slots + length:
            raise ValueError(
                f"attention_mask must cover what the KV cache holds and the {length} new tokens, got {mask.shape[1]}. Pass the "
                "mask of the whole conversation."
            )
        else:
            valid = mask[:, mask.shape[1] - slots - length :].bool()
        past, padding = valid[:, :slots], valid[:, slots:]
        chosen = torch.zeros_like(padding)
        if self.method.text_rows == "last":
            order = torch.arange(length, device=input_ids.device)
            chosen = order == torch.where(padding, order, -1).amax(dim=1, keepdim=True)
        elif self.method.text_rows == "instruction" and self.markers is not None:
            chosen = self.markers.mask(input_ids, padding)
        self.eager.enter_context(uncompiled())
        seen = cache.get_seq_length() if cache is not None else 0
        places = held_places(record, cache, batch).to(past.device) if slots else past.long()
        self.call = Call(input_ids, padding, encoded, *pad_rows(chosen), cache, seen, past, places)

    def _leave_core(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._forget()

    # -- the language model --------------------------------------------------------------------------------------

    def _enter_language(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = self.call
        if call is None:
            return None
        call.spans, call.pictures = self.vision.pictures(call.input_ids, call.encoded)
        if self.adapter.text.window is not None and call.cache is None and kwargs.get("use_cache") is not False:
            kwargs = kwargs | {"past_key_values": DynamicCache()}  # the model's own would forget
        if self.adapter.late_features is None:
            return args, kwargs
        mask, features = (kwargs.get(name) for name in self.adapter.late_features)
        if mask is not None and features is not None:
            call.late = mask, features
        return args, kwargs | dict.fromkeys(self.adapter.late_features)

    def _enter_layer(self, number: int) -> Callable[..., Any]:
        stages = [stage for stage in self.stages if stage.layer == number]

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            call = self.call
            if call is None:
                return None
            hidden = args[0] if args else kwargs["hidden_states"]
            call.cache = kwargs.get("past_key_values")  # where the caller passed none, the model has made one
            for stage in stages:
                hidden = self._prune(call, stage, hidden, kwargs)
            if not call.pruned:
                return None
            changed = {name: call.shorten(kwargs.get(name)) for name in ("position_ids", "position_embeddings")}
            changed["attention_mask"] = self._mask(call, number, hidden, kwargs.get("attention_mask"))
            if args:
                return (hidden, *args[1:]), kwargs | changed
            return args, kwargs | changed | {"hidden_states": hidden}

        return hook

    def _leave_layer(self, number: int) -> Callable[..., Any]:
        """DeepStack: add the features of a vision layer to the visual tokens that are left."""

        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            call = self.call
            if call is None or call.late is None or number >= len(call.late[1]):
                return None
            hidden = output[0] if isinstance(output, tuple) else output
            index, (mask, features) = call.slots.index, call.late
            mask = mask.to(index.device)
            order = (mask.flatten().cumsum(0) - 1).view_as(mask)
            visual = (mask.gather(1, index) & call.slots.valid).to(hidden.device)
            rows = order.gather(1, index).to(hidden.device)[visual]
            hidden = hidden.clone()
            hidden[visual] += features[number].to(hidden.device, hidden.dtype)[rows.to(hidden.device)]
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return hook

    def _prune(self, call: Call, stage: StageLike, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
        given = kwargs["position_embeddings"], kwargs.get("position_ids")
        embeddings, positions = (call.shorten(part) for part in given) if call.pruned else given
        seen = self.text.readable(call, stage.layer, hidden, embeddings, positions)
        selections = [self.method.select(picture, stage) for picture in seen]
        keep, places = call.padding.clone(), call.places()
        for number, (span, selection) in enumerate(zip(call.spans, selections, strict=True)):
            here = span.positions.to(keep.device)
            chosen = here[selection.kept.to(keep.device)]
            keep[span.row, here] = False
            keep[span.row, chosen] = True
            if selection.merged is not None:
                alive = call.pictures[number].alive
                own = places[span.row, here[alive.to(keep.device)]]
                hidden = merge(hidden, span.row, own, selection.merged[alive], places[span.row, chosen], selection.kept)
            call.pictures[number] = replace(call.pictures[number], alive=selection.kept)
        self._record_trace(call, stage.layer, selections)
        stays = keep.gather(1, call.slots.index) & call.slots.valid
        if bool((stays == call.slots.valid).all()):
            return hidden  # nothing leaves: the model runs exactly as it would alone
        slots = call.leave(stays)
        if call.cache is not None:
            compact_cache(call.cache, stage.layer, call.past.shape[1], slots.index)
        return take(hidden, slots.index, dim=1)

    def _mask(self, call: Call, layer: int, hidden: Tensor, own: Any) -> Any:
        """The mask of the current sequence, for the model's attention; made once per stage.

        Args:
            own: The layer's. With sliding windows there may be more in it than what is causal; None is nothing more.
        """
        if self.adapter.text.window is not None and own is not None:
            return call.shorten_mask(own)
        if "mask" not in call.shortened:
            mask = None
            if call.slots.padded or not bool(call.past.all()):
                mask = torch.cat([call.past, call.slots.valid], dim=1).long()
                mask = torch.nn.functional.pad(mask, (call.seen - call.past.shape[1], 0))
            call.shortened["mask"] = create_causal_mask(
                config=self.adapter.text.config,
                inputs_embeds=hidden,
                attention_mask=mask,
                past_key_values=call.cache if call.past.shape[1] else None,
                layer_idx=layer,
            )
        return call.shortened["mask"]

    def _record_trace(self, call: Call, layer: int, selections: list[Selection]) -> None:
        images = []
        for span, selection in zip(call.spans, selections, strict=True):
            scores = {name: score.detach().float().cpu() for name, score in selection.scores.items()}
            positions = call.seen + span.positions
            images.append(ImageTrace(span.row, span.layout, selection.budgets, selection.kept.cpu(), positions, scores))
        self.trace.images = images
        before, after = sum(image.num_tokens for image in images), sum(len(image.kept) for image in images)
        self.trace.visual_tokens = (before, after)
        below = self.trace.layer_tokens[:layer] if layer > self.stages[0].layer else (before,) * layer
        self.trace.layer_tokens = (*below, *(after,) * (len(self.adapter.layers) - layer))

    def _leave_language(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        call = self.call
        if call is None:
            return
        new, short, past = call.input_ids.shape[1], call.slots.index.shape[1], call.past.shape[1]
        cache = getattr(output, "past_key_values", None)
        size = cache_bytes(cache)
        self.trace.sequence_length = (call.seen + new, past + short)
        self.trace.cache_bytes = (size // (past + short) * (call.seen + new), size)
        if cache is not None and call.pruned:
            valid = torch.cat([call.past, call.slots.valid], dim=1)
            places = torch.cat([call.past_places, call.seen + call.slots.index], dim=1)
            finish_cache(cache, Record.of(valid, places, call.seen + new))
