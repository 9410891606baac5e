"""What selection alone costs as pictures grow: made-up signals of any number of tiles, no model is run."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import scoring
from ..adapters import Adapter, adapter_for
from ..methods.variants import Variant
from ..pruner import Pruner
from ..runtime import Picture
from ..runtime.vision import THUMBNAIL_SIDE, read_saliency
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
                run = partial(_choose, adapter, model, variant.pruner(keep_ratio), _signals(adapter, model, count))
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
    """What a method may read of a made-up picture: queries and keys (T, H, L, D) of the encoder, states of the text model."""

    vision: tuple[Tensor, Tensor]
    states: Tensor
    text: Tensor
    thumbnails: Tensor


def made_up_attention(adapter: Adapter, model: Any, tiles: int) -> tuple[Tensor, Tensor]:
    """Random queries and keys (T, H, L, D) of one vision layer, in the model's shapes."""
    config, heads = model.config, adapter.vision_attention(-1).heads
    patches = config.image_seq_length * round(1 / config.downsample_ratio) ** 2
    shape = (tiles, heads, patches + adapter.has_cls, config.vision_config.hidden_size // heads)
    queries, keys = (torch.randn(shape, device=model.device, dtype=model.dtype) for _ in range(2))
    return queries, keys


def _signals(adapter: Adapter, model: Any, tiles: int) -> Signals:
    torch.manual_seed(0)
    config, draw = model.config, partial(torch.randn, device=model.device, dtype=model.dtype)
    states = draw(tiles * config.image_seq_length, config.text_config.hidden_size)
    thumbnails = draw(tiles, config.vision_config.num_channels, THUMBNAIL_SIDE, THUMBNAIL_SIDE).float()
    return Signals(made_up_attention(adapter, model, tiles), states, draw(QUESTION, states.shape[1]), thumbnails)


def _choose(adapter: Adapter, model: Any, pruner: Pruner, signals: Signals) -> None:
    """Score a picture and select at every stage, as a prefill would."""
    tokens, tiles = len(signals.states), len(signals.thumbnails)
    saliency = [read_saliency(adapter, layer, *signals.vision) for layer in pruner.vision_layers]
    sizes = (tokens // tiles,) * tiles
    embeddings = signals.vision[0][:, :, 0].flatten(1)
    alive = torch.arange(tokens, device=signals.states.device)
    for stage in pruner.stages(len(adapter.layers)):
        states = signals.states[alive]
        relevance = cache(partial(_relevance, adapter, pruner, stage.layer, states, alive, signals))
        picture = Picture(
            sizes, adapter.grid(signals.thumbnails), alive, tuple(saliency), embeddings, signals.thumbnails,
            read_relevance=relevance, read_states=lambda: states, read_text=lambda: signals.text,  # noqa: B023
            read_keys=lambda: adapter.probe(stage.layer, states[None, :0], states[None])[1][0].flatten(1),  # noqa: B023
        )  # fmt: skip
        alive = pruner.select(picture, stage).kept.to(alive.device)


def _relevance(adapter: Adapter, pruner: Pruner, layer: int, states: Tensor, alive: Tensor, signals: Signals) -> Tensor:
    """Attention from the text tokens behind the picture, (N,)."""
    rows = signals.text if pruner.text_rows == "instruction" else signals.text[-1:]
    hidden = torch.cat([states, rows])[None]
    where = adapter.text_attention(max(layer - 1, 0))
    queries, keys = adapter.probe(max(layer - 1, 0), rows[None], hidden)
    queries = queries.reshape(1, len(rows), where.heads, -1).transpose(1, 2)
    keys = keys.reshape(1, hidden.shape[1], where.key_heads, -1).transpose(1, 2)
    places = torch.arange(len(states), hidden.shape[1], device=hidden.device)[None]
    valid = torch.ones(1, hidden.shape[1], dtype=torch.bool, device=hidden.device)
    scores = scoring.instruction_relevance(
        queries, keys, places, torch.ones_like(places, dtype=torch.bool), valid, where.scale, pruner.text_reduce
    )
    whole = scores.new_zeros(len(signals.states))
    whole[alive] = scores[0, : len(states)]
    return whole
