"""What selection alone costs as pictures grow: made-up signals of any number of tiles, no model is run."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..adapters import Adapter, Span, adapter_for
from ..adapters.base import PIXELS_SIDE
from ..adapters.text import Part
from ..methods.parsing import Variant
from ..pruner import Pruner
from ..runtime import Picture, Setup, VisionRead
from ..runtime.gather import take
from ..runtime.incoming import Held
from ..runtime.picture import Vision
from ..runtime.prefill import Host, Prefill
from ..runtime.remaining import Remaining
from ..runtime.text import TextReader
from ..runtime.vision import picture_of, read_attention, read_keys, resolve
from .clock import seconds
from .prompt import FIRST_WORD, QUESTION

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
                run = partial(_choose, adapter, variant.pruner(keep_ratio), made_up_signals(adapter, model, count))
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
        hidden: (1, N + R, width) in the language model: the picture, then the question.
        ids: (1, N + R) its prompt.
        about: What the adapter remembers of the pixels.
    """

    vision: tuple[Tensor, Tensor]
    embeddings: list[Tensor]
    pixels: list[Tensor]
    hidden: Tensor
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
    tokens = tiles * config.image_seq_length
    pixels = draw(tiles, config.vision_config.num_channels, PIXELS_SIDE, PIXELS_SIDE).float()
    vision = made_up_attention(adapter, model, tiles)
    ids = torch.tensor([[adapter.image_token_id] * tokens + [FIRST_WORD] * QUESTION], device=model.device)
    hidden = draw(1, tokens + QUESTION, config.text_config.hidden_size)
    about = adapter.about({"pixel_values": pixels}, 0)
    return Signals(vision, list(vision[0][:, :1].unbind()), list(pixels), hidden, ids, about)


def look(adapter: Adapter, reads: Sequence[VisionRead], signals: Signals) -> tuple[Span, Picture]:
    """The picture as the runtime makes it: scored in the encoder, and laid out."""
    reads = resolve(adapter, reads)
    attention = {
        (read.layer, read.attention): read_attention(adapter, read.layer, read.attention, *signals.vision)
        for read in reads
        if read.attention is not None
    }
    keys = {read.layer: read_keys(adapter, read.layer, *signals.vision) for read in reads if read.keys}
    tokens = adapter.visual_tokens(signals.ids)
    vision = Vision(attention, keys, signals.embeddings, signals.pixels, signals.about, 0, int(tokens.sum()))
    (span,) = adapter.locate(signals.ids.cpu(), tokens.cpu(), signals.about, signals.pixels)
    return span, picture_of(adapter, span, vision, reads)


def _choose(adapter: Adapter, pruner: Pruner, signals: Signals) -> None:
    """Score a picture and select at every stage, by the runtime's own prefill."""
    reads, stages = pruner.reads(adapter.vision_depth), pruner.stages(len(adapter.layers))
    prefill = _prefill(Setup(adapter, pruner, reads, None, stages), signals)
    prefill.see([look(adapter, reads.vision, signals)])
    hidden, text, places = signals.hidden, TextReader(adapter, reads.probe), prefill.remaining.places
    prefill.inputs = hidden if reads.inputs else None
    for stage in stages:
        prefill.captured, prefill.captured_of = _captured(adapter, prefill, stage.layer, hidden), prefill.remaining.as_now()
        pictures = text.readable(prefill, stage.layer, hidden, adapter.text.model.rotary_emb(hidden, places), places)
        hidden = prefill.prune(stage, pictures, hidden)


def _captured(adapter: Adapter, prefill: Prefill, layer: int, hidden: Tensor) -> dict[Part, Tensor]:
    """What the runtime would keep of the layer below, were `hidden` its input: (1, S, ...), queries (1, R, ...)."""
    probe, text = prefill.setup.reads.probe, adapter.text
    if probe is None or (source := probe.source(layer, text.attending)) in (None, layer):
        return {}
    normed = text.normed(source, hidden)
    asked = {"q": take(normed, prefill.asked_slots(), dim=1)}
    return {part: text.projection(source, part)(asked.get(part, normed)) for part in probe.parts}


def _prefill(setup: Setup, signals: Signals) -> Prefill:
    """Of a prompt whose text is all instruction, or of which the last token asks."""
    is_token = torch.ones_like(signals.ids, dtype=torch.bool)
    rows = 1 if setup.reads.probe is not None and setup.reads.probe.rows == "last" else QUESTION
    asked = torch.zeros_like(is_token)
    asked[:, -rows:] = True
    places = asked[0].nonzero()[:, 0][None]
    held = Held(0, is_token[:, :0], signals.ids[:, :0])
    host = Host.of(signals.ids, is_token, asked)
    remaining = Remaining(is_token, host.is_token)
    return Prefill(setup, signals.ids, is_token, {}, asked, places, asked[:, -rows:], None, held, remaining, host)
