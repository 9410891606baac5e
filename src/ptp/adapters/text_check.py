"""Whether a text model attends the way its queries and keys are read: by what it has, and by its own attention rows."""

import contextlib
import copy
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch
from torch import Tensor

from ..errors import UnsupportedModelError

if TYPE_CHECKING:
    from .text import TextModel

TOKENS = 8
"""Of the input that the rows are computed of."""
FAR = 10**6
"""Distance between its positions where a factor on the queries grows with them."""
TOLERANCES = {torch.float32: 1e-3, torch.float64: 1e-6}
ROUGH = 3e-2
"""How far rows may be apart, and in half precision."""
_checked: "WeakSet[Any]" = WeakSet()


class _Heard(Exception):
    """The last layer that matters is about to attend."""


@dataclass
class _Call:
    """What a layer and its attention are given.

    Attributes:
        hidden: (1, TOKENS, D) the layer's input. embeddings, places: Its rotary positions, and these themselves (or None).
        attention: The keywords of its attention, `hidden_states` among them.
    """

    hidden: Tensor
    embeddings: tuple[Tensor, Tensor]
    places: Any
    attention: dict[str, Any]


def modeling_of(layer: Any) -> Any:
    """The module of the library that a decoder layer's attention is written in."""
    return sys.modules[type(layer.self_attn).__module__]


def check_parts(model: Any, family: str, layer_norm: str = "input_layernorm") -> None:
    """Whether a text model has what is read of it; of layers that do not attend (in hybrid models) nothing is.

    Args:
        layer_norm: Name of the norm before a layer's projections.

    Raises:
        UnsupportedModelError: it names what is missing.
    """
    attending = [(number, layer) for number, layer in enumerate(getattr(model, "layers", ())) if hasattr(layer, "self_attn")]
    lacks = "" if attending else "layers with self_attn"
    for number, layer in attending:
        lacks = lacks or _lacking(number, layer, layer_norm)
    if lacks:
        kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
        raise UnsupportedModelError(
            f"{family} with text model {kind!r} is not supported: it has no {lacks}. Decoder layers must have {layer_norm} "
            "and self_attn with q_proj and k_proj (or one qkv_proj), head_dim, scaling and rotary positions."
        )


def _lacking(number: int, layer: Any, layer_norm: str) -> str:
    if not hasattr(layer, layer_norm):
        return f"{layer_norm} in layer {number}"
    attention = layer.self_attn
    parts = ("qkv_proj",) if hasattr(attention, "qkv_proj") else ("q_proj", "k_proj", "v_proj")
    if getattr(attention, "is_kv_shared_layer", False):  # it looks at the keys and values of an earlier layer
        parts = ("q_proj",)
    for name in (*parts, "head_dim", "scaling"):
        if not hasattr(attention, name):
            return f"self_attn.{name} in layer {number}"
    names = ("apply_rotary_pos_emb", "apply_multimodal_rotary_pos_emb")  # the second where layers mix axes (transformers 5.16)
    known = any(hasattr(modeling_of(layer), name) for name in names)
    return "" if known else "apply_rotary_pos_emb in its attention's module"


@torch.no_grad()
def check_rows(text: "TextModel", family: str) -> None:
    """Whether the attention rows of one layer of each kind are those of its queries and keys as `text` reads them.

    A few random tokens go into the language model, and attention is computed twice: by the layer itself, eagerly, and from the
    projections. Once for each model.

    Raises:
        UnsupportedModelError: they differ; it names how.
    """
    if text.model in _checked:
        return
    kinds: dict[Any, int] = {}
    for number in text.attending:
        kinds.setdefault(_kind(text, number, text.layers[number].self_attn), number)
    calls = _listen(text, sorted(kinds.values()))
    first = calls[min(calls)]
    for number, call in calls.items():
        problem = _difference(
            _own_rows(text, number, call), _read_rows(text, number, call, first.embeddings), call.hidden.dtype
        )
        if problem:
            raise UnsupportedModelError(
                f"{family} with text model {text.config.model_type!r} is not supported: attention of layer {number} "
                f"({type(text.layers[number].self_attn).__name__}) is not that of its queries and keys. {problem} Give the "
                "adapter a TextModel of its own that reads them as the layer does."
            )
    _checked.add(text.model)


def _kind(text: "TextModel", number: int, attention: Any) -> Any:
    """Attentions of the same class, settings and parts compute the same."""
    plain = {k: v for k, v in vars(attention).items() if isinstance(v, int | float | str | None) and k != "layer_idx"}
    types = getattr(text.config, "layer_types", None)
    parts = tuple(name for name, _ in attention.named_children())
    return type(attention), tuple(sorted(plain.items())), parts, types[number] if types else None


def _listen(text: "TextModel", numbers: list[int]) -> dict[int, _Call]:
    """What the layers of these numbers are given when the language model runs; it is stopped at the last of them."""
    calls: dict[int, _Call] = {}
    layers: dict[int, Any] = {}

    def at_layer(number: int) -> Any:
        return lambda module, args, kwargs: layers.update({number: (args[0] if args else kwargs["hidden_states"], kwargs)})

    def at_attention(number: int) -> Any:
        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden, given = layers[number]
            own = {"hidden_states": args[0], **kwargs} if args else kwargs
            calls[number] = _Call(hidden, given["position_embeddings"], given.get("position_ids"), own)
            if number == numbers[-1]:
                raise _Heard

        return hook

    model = text.model
    device = torch.device("cpu") if model.device.type == "meta" else model.device
    noise = torch.randn(1, TOKENS, text.config.hidden_size, generator=torch.Generator().manual_seed(0))
    with contextlib.ExitStack() as stack:
        stack.enter_context(_as_written())
        for number in numbers:
            layer = text.layers[number]
            stack.callback(layer.register_forward_pre_hook(at_layer(number), with_kwargs=True).remove)
            stack.callback(layer.self_attn.register_forward_pre_hook(at_attention(number), with_kwargs=True).remove)
        with contextlib.suppress(_Heard):
            embeds = noise.to(device, model.dtype)
            model(inputs_embeds=embeds, use_cache=False, **text.beside(embeds))
    return calls


@contextlib.contextmanager
def _as_written() -> Iterator[None]:
    """Compiled modules do not look at hooks."""
    if "torch._dynamo" not in sys.modules:  # nothing can be compiled, and the import takes seconds
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def _far(call: _Call) -> Tensor:
    """(1, TOKENS) positions far from each other, where each counts by itself."""
    return FAR * torch.arange(TOKENS, device=call.hidden.device)[None]


def _own_rows(text: "TextModel", number: int, call: _Call) -> Tensor | None:
    """(1, H, TOKENS, TOKENS) attention of the layer itself; None where it tells none."""
    attention = text.layers[number].self_attn
    twin = copy.copy(attention)  # with a configuration of its own: the model's is not touched
    twin.__dict__.pop("forward", None)  # what accelerate puts there would call the original
    twin.config = copy.copy(attention.config)
    twin.config._attn_implementation = "eager"
    twin.training = False
    hidden = call.attention["hidden_states"]
    given = dict(call.attention, attention_mask=_causal(hidden))
    if given.get("position_ids") is not None:
        given["position_ids"] = _far(call)
    output = twin(**given)
    rows = output[1] if isinstance(output, tuple) and len(output) > 1 else None
    return None if rows is None else rows.float()


def _read_rows(text: "TextModel", number: int, call: _Call, given: tuple[Tensor, Tensor]) -> Tensor:
    """The same from queries and keys, as the probe reads them."""
    normed = text.normed(number, call.hidden)
    queries = text.heads(number, text.projection(number, "q")(normed), "q")
    cos, sin = text.positions(number, given, call.hidden, call.places)
    queries, name = text.rotate(queries, cos, sin), text.shared(number)
    if name is None:
        keys = text.rotate(text.heads(number, text.projection(number, "k")(normed), "k"), cos, sin)
    else:
        keys = call.attention["shared_kv_states"][name][0]
    queries = text.at_places(queries, _far(call))
    keys = keys.repeat_interleave(queries.shape[1] // keys.shape[1], dim=1)
    products = queries.float() @ keys.float().mT * text.scale(number)
    return (products + _causal(products)).softmax(dim=-1).to(normed.dtype).float()


def _causal(like: Tensor) -> Tensor:
    low = torch.full((1, 1, TOKENS, TOKENS), torch.finfo(like.dtype).min, dtype=like.dtype, device=like.device)
    return low.triu(1)


def _difference(own: Tensor | None, read: Tensor, dtype: torch.dtype) -> str:
    """How rows differ, in a sentence; empty where they do not."""
    if own is None:
        return "It does not tell its attention weights when run eagerly."
    if own.shape != read.shape:
        return f"It has {own.shape[1]} heads, and its queries {read.shape[1]}."
    tolerance = TOLERANCES.get(dtype, ROUGH)
    error = float((own - read).abs().max())
    if error <= tolerance:
        return ""
    whole = f"Its rows differ by {error:.2g}: "
    sums = own.sum(dim=-1)
    if float((sums - 1).abs().max()) > tolerance:
        return f"{whole}they sum to {float(sums.min()):.3g} to {float(sums.max()):.3g} and not to 1 (attention sinks)."
    seen = torch.ones_like(own).tril().bool()
    low = torch.finfo(torch.float32).tiny
    logs = [rows.clamp_min(low).log()[..., 1:, :] for rows in (own, read)]
    own_steps, read_steps = ((rows - rows[..., :1])[seen[..., 1:, :]] for rows in logs)
    factor = float((own_steps @ read_steps) / (read_steps @ read_steps).clamp_min(low))
    if float((own_steps - factor * read_steps).abs().max()) < 0.01 * float(own_steps.abs().max()):
        return f"{whole}its scores are {factor:.3g} times the products of queries and keys (a factor beside `scaling`)."
    return f"{whole}queries or keys are normed, rotated or gated in another way, or a cap is put on their products."
