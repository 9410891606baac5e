"""What selection alone costs as pictures grow: made-up signals of any number of tiles, no model is run."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import scoring
from ..adapters import Adapter, adapter_for
from ..adapters.base import PIXELS_SIDE
from ..methods.variants import Variant
from ..pruner import Pruner
from ..runtime import Picture
from ..runtime.picture import Vision
from ..runtime.vision import picture_of, read_saliency
from .clock import seconds
from .prompt import QUESTION

REPETITIONS = 5
PATIENCE = 5.0
"""Seconds after which a method gets no larger picture."""


@dataclass(frozen=True)
class Cost:
    """Seconds that one method takes to choose tokens of one picture: the median, at least two runs."""

    method: str
    visual_tokens: int
    seconds: float


@torch.inference_mode()
def selection_costs(
    model: Any, variants: Sequence[Variant], keep_ratio: float, tiles: Sequence[int], advance: Callable[[], None] = lambda: None
) -> list[Cost]:
    """Time every method on pictures of so many tiles; scoring in the encoder and in the language model is included.

    Args:
        model: Its shapes are used, and the projections of its layers.
        tiles: Ascending. A method that takes longer than `PATIENCE` gets no larger ones.
        advance: Called after each picture of each method.
    """
    adapter, costs = adapter_for(model), []
    for variant in variants:
        patience = True
        for count in tiles:
            if patience:
                run = partial(_choose, adapter, model, variant.pruner(keep_ratio), made_up_signals(adapter, model, count))
                first = seconds(run, model.device)
                repeated = [seconds(run, model.device) for _ in range(REPETITIONS if first < PATIENCE else 1)]
                costs.append(Cost(variant.name, count * model.config.image_seq_length, statistics.median(repeated)))
                patience = costs[-1].seconds < PATIENCE
            advance()
    return costs


def exponent(costs: Sequence[Cost]) -> float | None:
    """The power of the number of tokens that the cost grows with: the slope in the logarithms, from 1,024 tokens on."""
    large = [cost for cost in costs if cost.visual_tokens >= 1024]
    if len(large) < 2:
        return None
    tokens, times = (np.log([getattr(cost, name) for cost in large]) for name in ("visual_tokens", "seconds"))
    return float(np.polyfit(tokens, times, 1)[0])


@dataclass(frozen=True)
class Signals:
    """What a method may read of a made-up picture.

    Attributes:
        vision: What the modules of `vision_attention` put out.
        embeddings: (1, D) and pixels: (C, side, side) of each tile.
        states: (N, width) and text: (R, width) in the language model.
        ids: (1, N) its prompt.
        about: What the adapter remembers of the pixels.
    """

    vision: tuple[Tensor, Tensor]
    embeddings: list[Tensor]
    pixels: list[Tensor]
    states: Tensor
    text: Tensor
    ids: Tensor
    about: Any


def made_up_attention(adapter: Adapter, model: Any, tiles: int) -> tuple[Tensor, Tensor]:
    """Random queries and keys (T, L, H * D) of one vision layer, in the model's shapes."""
    config = model.config
    patches = config.image_seq_length * round(1 / config.downsample_ratio) ** 2
    shape = (tiles, patches + adapter.has_cls, config.vision_config.hidden_size)
    queries, keys = (torch.randn(shape, device=model.device, dtype=model.dtype) for _ in range(2))
    return queries, keys


def made_up_signals(adapter: Adapter, model: Any, tiles: int) -> Signals:
    """Random signals of a picture of so many tiles, in the model's shapes."""
    torch.manual_seed(0)
    config, draw = model.config, partial(torch.randn, device=model.device, dtype=model.dtype)
    states = draw(tiles * config.image_seq_length, config.text_config.hidden_size)
    pixels = draw(tiles, config.vision_config.num_channels, PIXELS_SIDE, PIXELS_SIDE).float()
    vision = made_up_attention(adapter, model, tiles)
    ids = torch.full((1, len(states)), adapter.image_token_id)
    about, text = adapter.about({"pixel_values": pixels}, 0), draw(QUESTION, states.shape[1])
    return Signals(vision, list(vision[0][:, :1].unbind()), list(pixels), states, text, ids, about)


def look(adapter: Adapter, layers: Sequence[int], signals: Signals) -> Picture:
    """The picture as the runtime makes it: scored in the encoder, and laid out."""
    saliency = {layer: read_saliency(adapter, layer, *signals.vision) for layer in layers}
    vision = Vision(saliency, signals.embeddings, signals.pixels, signals.about, 0, len(signals.states))
    (span,) = adapter.locate(signals.ids, adapter.visual_tokens(signals.ids), signals.about, signals.pixels)
    return picture_of(adapter, span, vision, layers)


def _choose(adapter: Adapter, model: Any, pruner: Pruner, signals: Signals) -> None:
    """Score a picture and select at every stage, as a prefill would."""
    picture, text = look(adapter, pruner.vision_layers, signals), adapter.text
    for stage in pruner.stages(len(adapter.layers)):
        everything = len(picture.alive) == len(signals.states)
        states = signals.states if everything else signals.states[picture.alive]  # the runtime copies nothing either
        relevance = cache(partial(_relevance, adapter, pruner, stage.layer, states, picture.alive, signals))
        picture = replace(
            picture, read_relevance=relevance, read_states=lambda: states, read_text=lambda: signals.text,  # noqa: B023
            read_keys=lambda: text.plain_keys(stage.layer, text.project(stage.layer, states[None], states[None])[1])[0],  # noqa: B023
        )  # fmt: skip
        picture = replace(picture, alive=pruner.select(picture, stage).kept.to(states.device))


def _relevance(adapter: Adapter, pruner: Pruner, layer: int, states: Tensor, alive: Tensor, signals: Signals) -> Tensor:
    """Attention from the text tokens behind the picture, (N,)."""
    rows = signals.text if pruner.text_rows == "instruction" else signals.text[-1:]
    hidden, source = torch.cat([states, rows])[None], max(layer - 1, 0)
    queries, keys = adapter.text.project(source, rows[None], hidden)
    places = torch.arange(hidden.shape[1], device=hidden.device)[None]
    cos, sin = adapter.text.model.rotary_emb(hidden, places)
    queries = adapter.text.queries(source, queries, cos[:, -len(rows) :], sin[:, -len(rows) :])
    keys = adapter.text.keys(source, keys, cos, sin)
    scores = scoring.instruction_relevance(
        queries, keys, places[:, -len(rows) :], torch.ones_like(places[:, -len(rows) :], dtype=torch.bool),
        torch.ones_like(places, dtype=torch.bool), adapter.text.scale(source), pruner.text_reduce,
    )  # fmt: skip
    whole = scores.new_zeros(len(signals.states))
    whole[alive] = scores[0, : len(states)]
    return whole
