"""What pruning must equal: the whole sequence, in which the dropped tokens are hidden and nothing is removed."""

import contextlib
import copy
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..adapters import adapter_for
from ..pruner import Pruner, Stage
from ..runtime import Picture
from ..selection import Selection


@contextlib.contextmanager
def blinded(model: Any, padding: Tensor, *gone: tuple[Mapping[int, Tensor], int | None]) -> Iterator[None]:
    """The model whose tokens do not see those in `gone`; nothing is removed.

    Args:
        padding: (B, S) bool, False for padding.
        gone: Pairs of dropped tokens (B, S), by the first layer they are missing in, and the length of their prompt. What
            comes after it goes on from compacted caches, and sees the dropped tokens in no layer.
    """
    layers, length, device = adapter_for(model).layers, padding.shape[1], padding.device
    causal, order = torch.ones(length, length, device=device).tril().bool(), torch.arange(length, device=device)

    def hook(number: int, module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        own = kwargs["attention_mask"]  # windows, and pictures that see both ways, are the model's own
        seen = causal & padding[:, None] if own is None else (own if own.dtype == torch.bool else own > -1)[:, 0]
        for dropped, prompt_length in gone:
            for layer, tokens in dropped.items():
                late = order >= (length if prompt_length is None else prompt_length)
                blind = late | torch.tensor(layer <= number, device=device)
                seen = seen & ~(tokens.to(device)[:, None] & blind[None, :, None])
        seen = seen | torch.eye(length, dtype=torch.bool, device=device)
        mask = torch.zeros(seen.shape, device=device).masked_fill(~seen, -1e30)[:, None]
        return args, kwargs | {"attention_mask": mask}

    handles = [layer.register_forward_pre_hook(functools.partial(hook, n), with_kwargs=True) for n, layer in enumerate(layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def merged(model: Any, trace: Any, selections: Mapping[int, Sequence[Selection]]) -> Iterator[None]:
    """The model in which kept tokens become, at the input of each stage's layer, what methods that merge make of them."""

    def hook(chosen: Sequence[Selection], module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        hidden = (args[0] if args else kwargs["hidden_states"]).clone()
        for image, selection in zip(trace.images, chosen, strict=True):
            if selection.mix is not None:
                places = image.positions.to(hidden.device)
                weighed = selection.mix.to(hidden) @ hidden[image.row, places]
                hidden[image.row, places[selection.kept.to(hidden.device)]] = weighed
        return ((hidden, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": hidden})

    layers = adapter_for(model).layers
    handles = [
        layers[number].register_forward_pre_hook(functools.partial(hook, chosen), with_kwargs=True)
        for number, chosen in selections.items()
        if any(selection.mix is not None for selection in chosen)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def drops(inputs: Mapping[str, Tensor], trace: Any, selections: Mapping[int, Sequence[Selection]]) -> dict[int, Tensor]:
    """Layer -> (B, S) tokens that are missing from there on; `selections` has what was chosen of each picture, by layer."""
    gone = {}
    for layer, chosen in selections.items():
        missing = torch.zeros_like(inputs["input_ids"], dtype=torch.bool, device="cpu")
        for image, selection in zip(trace.images, chosen, strict=True):
            left = torch.ones(image.num_tokens, dtype=torch.bool)
            left[selection.kept.cpu()] = False
            missing[image.row, image.positions.cpu()[left]] = True
            missing[image.row, image.structure[(image.structure_left >= 0) & (image.structure_left <= layer)]] = True
        gone[layer] = missing.to(inputs["input_ids"].device)
    return gone


def extended(inputs: Mapping[str, Tensor], tokens: Tensor) -> dict[str, Tensor]:
    """The inputs with `tokens` (B, n) behind the prompt."""
    more = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    more |= dict.fromkeys(("mm_token_type_ids", "token_type_ids"), torch.zeros_like(tokens))
    return {name: torch.cat([value, more[name]], dim=1) if name in more else value for name, value in inputs.items()}


def watched(method: Pruner) -> tuple[Pruner, dict[int, list[Selection]]]:
    """A pruner that does as `method` does, and what it selects of each picture, by layer."""
    seen: dict[int, list[Selection]] = {}
    kind: Any = type(method)

    def select(self: Pruner, picture: Picture, stage: Stage) -> Selection:
        selection = kind.select(self, picture, stage)
        seen.setdefault(stage.layer, []).append(selection)
        return selection

    twin = copy.copy(method)
    object.__setattr__(twin, "__class__", type(kind.__name__, (kind,), {"select": select}))
    return twin, seen
