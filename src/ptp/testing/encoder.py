"""What a vision encoder does, seen from the outside: nothing here asks an adapter how patches become visual tokens."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..adapters import Adapter

RECORDING = "ptp_recording"
"""Name under which transformers finds the attention that is listened to."""


class Reached(Exception):
    """The language model is about to run: what there is to see has been seen."""


@dataclass(frozen=True)
class Attended:
    """One call of a vision layer's attention.

    Attributes:
        module: The attention module.
        query, key: (U, H, L, D), as they meet: normed, at their positions.
        scale: The factor on the dot products.
        mask: What is added to them, or where they count; None is everywhere.
    """

    module: nn.Module
    query: Tensor
    key: Tensor
    scale: float
    mask: Tensor | None

    def maps(self, queries: Tensor | None = None) -> Tensor:
        """(U, L', L) attention, averaged over heads, of all queries or of those at `queries`."""
        q = self.query.float() if queries is None else self.query[:, :, queries].float()
        key = self.key.float().repeat_interleave(q.shape[1] // self.key.shape[1], dim=1)
        logits = torch.einsum("uhid,uhjd->uhij", q, key) * self.scale
        if self.mask is not None:
            mask = self.mask if queries is None else self.mask[..., queries, :]
            logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask
        return logits.softmax(dim=-1).mean(dim=1)

    def sequences(self) -> "list[Attended]":
        """The U sequences one by one."""
        units = range(self.query.shape[0])
        masks = [self.mask if self.mask is None or len(self.mask) == 1 else self.mask[unit, None] for unit in units]
        return [replace(self, query=self.query[n, None], key=self.key[n, None], mask=masks[n]) for n in units]

    def seen(self) -> Tensor:
        """(L',) rows of a single sequence that any of its rows sees."""
        if self.mask is None:
            return torch.arange(self.key.shape[2])
        shown = self.mask if self.mask.dtype == torch.bool else self.mask > torch.finfo(self.mask.dtype).min / 2
        return shown.flatten(0, -2).any(dim=0).nonzero()[:, 0].cpu()


@contextlib.contextmanager
def attention(model: nn.Module, name: str) -> Iterator[None]:
    """The model under another attention; afterwards as it was."""
    configs: list[Any] = list({id(m.config): m.config for m in model.modules() if hasattr(m, "config")}.values())
    usual = [(config, getattr(config, "_attn_implementation_internal", None)) for config in configs]
    try:
        for config in configs:
            config._attn_implementation = name
        yield
    finally:
        for config, own in usual:
            config._attn_implementation_internal = own


@contextlib.contextmanager
def recording(vision: nn.Module) -> Iterator[list[Attended]]:
    """Every attention call inside the encoder, in order, as long as the context lasts."""
    seen: list[Attended] = []

    def record(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any) -> Any:
        scale = options.get("scaling") or query.shape[-1] ** -0.5
        seen.append(Attended(module, query.detach(), key.detach(), scale, attention_mask))
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)

    ALL_ATTENTION_FUNCTIONS.register(RECORDING, record)
    ALL_MASK_ATTENTION_FUNCTIONS.register(RECORDING, sdpa_mask)
    try:
        with attention(vision, RECORDING):
            yield seen
    finally:
        for functions in (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS):
            functions._global_mapping.pop(RECORDING, None)


@contextlib.contextmanager
def listening(module: nn.Module, hook: Callable[..., Any]) -> Iterator[None]:
    """A forward hook that comes before those that are there already: they get what it gives back."""
    handle = module.register_forward_hook(hook, prepend=True)
    try:
        yield
    finally:
        handle.remove()


def embedded(model: Any, adapter: Adapter, inputs: Mapping[str, Tensor]) -> Tensor:
    """(B, S, width) what the language model is given, pictures filled in; it does not run.

    Raises:
        RuntimeError: it is not given `inputs_embeds`.
    """
    seen: list[Tensor] = []

    def reached(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if kwargs.get("inputs_embeds") is not None:
            seen.append(kwargs["inputs_embeds"])
            raise Reached

    handle = adapter.text.model.register_forward_pre_hook(reached, with_kwargs=True)
    try:
        with contextlib.suppress(Reached):
            model(**inputs)
    finally:
        handle.remove()
    if not seen:
        raise RuntimeError("the module of TextModel was not called with inputs_embeds")
    return seen[0]


def first(output: Any) -> Tensor:
    """The states in what a layer puts out."""
    return output if isinstance(output, Tensor) else output[0]


def with_states(output: Any, states: Tensor) -> Any:
    """What a layer puts out, with other states."""
    return states if isinstance(output, Tensor) else (states, *output[1:])


def layers_of(calls: list[Attended]) -> list[nn.Module]:
    """The attention modules in the order in which they were called: layer by layer."""
    return list({id(call.module): call.module for call in calls}.values())
