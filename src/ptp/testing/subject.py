"""What `check_adapter` looks at: a model, prompts with pictures for it, and the pruners to prune it with."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..adapters import Adapter, Layout, adapter_for
from ..pruner import Pruner, Stage
from ..runtime import Picture, PrefillTrace, Reads, TextProbe, VisionRead
from ..selection import Selection, total_budget
from .encoder import embedded

QUESTION = "What is on the red circle?"
ASKED, CLOSING = 8, 2
"""Tokens of a row that are taken for the instruction; and those behind them that are not."""
Prompts = Sequence[tuple[Sequence[Image.Image], str]]
Encode = Callable[[Prompts], Mapping[str, Tensor]]


def by_chat_template(processor: Any) -> Encode:
    """Left-padded model inputs of prompts, one user turn each, by the processor's chat template."""

    def encode(prompts: Prompts) -> Mapping[str, Tensor]:
        turns = []
        for pictures, question in prompts:
            parts = [{"type": "image", "image": picture} for picture in pictures] + [{"type": "text", "text": question}]
            turns.append([{"role": "user", "content": parts}])
        return processor.apply_chat_template(
            turns, add_generation_prompt=True, tokenize=True, return_dict=True,
            processor_kwargs={"padding": True, "padding_side": "left", "return_tensors": "pt"},
        )  # fmt: skip

    return encode


@dataclass(frozen=True)
class Signals:
    """What a method can read of a picture: (N,) of each vision layer, (N,) of the text if asked, (T, D) of its regions."""

    layout: Layout
    saliency: tuple[Tensor, ...]
    relevance: Tensor
    embeddings: Tensor


@dataclass(frozen=True, kw_only=True)
class Listener(Pruner):
    """Keeps what it may read in `heard`; of the text only where it `asks`."""

    layers: tuple[int, ...] = (-1,)
    asks: bool = False
    prune_layer: int = 0
    heard: list[Signals] = field(default_factory=list)

    def stages(self, layers: int) -> tuple[Stage, ...]:
        return (Stage(self.prune_layer, self.keep_ratio),)

    def reads(self, vision_depth: int) -> Reads:
        return Reads(tuple(map(VisionRead, self.layers)), TextProbe("instruction") if self.asks else None)

    def select(self, picture: Picture, stage: Stage) -> Selection:
        saliency = tuple(signal.saliency.cpu() for signal in picture.vision)
        relevance = picture.text_attention.cpu() if self.asks else torch.empty(0)
        self.heard.append(Signals(picture.layout, saliency, relevance, picture.embeddings))
        count = total_budget(stage.keep_ratio, picture.tokens)
        kept = torch.linspace(0, picture.tokens - 1, count).round().long()
        return Selection(kept, picture.count_per_tile(kept))


@dataclass(frozen=True)
class Subject:
    """A model, and what is done with it.

    Attributes:
        model: In float32, under sdpa. processor: Its own. encode: Makes inputs of prompts.
        pictures: At least one. pruners: That drop tokens. tolerance: How far logits may be apart.
    """

    model: Any
    processor: Any
    encode: Encode
    pictures: tuple[Image.Image, ...]
    pruners: tuple[Pruner, ...]
    tolerance: float

    @cached_property
    def adapter(self) -> Adapter:
        """The one that is registered for the model."""
        return adapter_for(self.model)

    @property
    def few(self) -> tuple[Pruner, ...]:
        """The first and the last of the pruners, where all would only take longer."""
        return tuple(dict.fromkeys((self.pruners[0], self.pruners[-1])))

    @cached_property
    def listener(self) -> Listener:
        """Hears the last vision layer and drops nothing; regions are those of the pruners."""
        return Listener(window=self.pruners[0].window, keep_ratio=1.0)

    def picture(self, number: int) -> Image.Image:
        """One of the pictures, again from the first after the last."""
        return self.pictures[number % len(self.pictures)]

    def inputs(self, *prompts: tuple[Sequence[Image.Image], str]) -> dict[str, Tensor]:
        """Model inputs on the model's device."""
        made = self.encode(prompts)
        return {name: value.to(self.model.device) for name, value in made.items() if isinstance(value, Tensor)}

    @cached_property
    def one(self) -> dict[str, Tensor]:
        """A picture and a question."""
        return self.inputs(([self.picture(0)], QUESTION))

    @torch.no_grad()
    def shown(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """(B, S) bool: where the embeddings change with the pixels, which is where visual tokens are."""
        pixels = {name: value for name, value in inputs.items() if name.startswith("pixel") and value.is_floating_point()}
        if not pixels:
            return torch.zeros_like(inputs["input_ids"]).bool()
        noise = torch.Generator().manual_seed(0)
        other = {name: torch.randn(value.shape, generator=noise).to(value) * (value != 0) for name, value in pixels.items()}
        before, after = (embedded(self.model, self.adapter, each) for each in (inputs, {**inputs, **other}))
        return (before != after).any(dim=-1)

    def asked(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """(B, S) bool: a few text tokens near the end of each row, which stand for the instruction."""
        text = inputs["attention_mask"].bool() & ~self.adapter.visual_tokens(inputs["input_ids"])
        behind = text.flip(1).cumsum(dim=1).flip(1)
        return text & (behind > CLOSING) & (behind <= CLOSING + ASKED)

    def positions(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Positions as `generate` counts them, for models that do not make their own of the pictures."""
        takes = "position_ids" in inspect.signature(self.model.forward).parameters
        if hasattr(self.adapter.core, "get_rope_index") or not takes:
            return {}
        return {"position_ids": (inputs["attention_mask"].cumsum(dim=1) - 1).clamp_min(0)}

    @torch.no_grad()
    def prune(self, method: Pruner, inputs: Mapping[str, Tensor], **call: Any) -> tuple[Any, PrefillTrace]:
        """The output of a pruned prefill and its trace."""
        with method(self.model, self.processor, self.asked(inputs)) as trace:
            output = self.model(**inputs, **call)
        return output, trace.newest


def named(method: Pruner) -> str:
    """A method and where it prunes, for reports."""
    text = f"{type(method).__name__}(keep_ratio={method.keep_ratio:g}"
    for name in ("prune_layer", "alpha", "relevance"):
        if getattr(method, name, None) is not None:
            text += f", {name}={getattr(method, name)!r}"
    return f"{text})"


def footprint(model: torch.nn.Module) -> dict[str, Any]:
    """What hangs on each module: its attributes, and how many hooks."""
    return {
        name: (sorted(vars(module)), {k: len(v) for k, v in vars(module).items() if "hooks" in k and hasattr(v, "__len__")})
        for name, module in model.named_modules()
    }
