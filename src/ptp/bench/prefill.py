"""Prefill of the language model: full, pruned, and the limit (the model fed only the kept tokens), interleaved."""

import contextlib
import functools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import InternVLForConditionalGeneration

from .. import scoring
from ..adapters.instruction import TurnMarkers
from ..methods import PyramidPruner
from ..pruner import Pruner, attach
from .measure import seconds
from .presets import IMAGE_TOKEN

TILES, TEXT_BEFORE, QUESTION = 13, 8, 32
OPENING, CLOSING = (7, 8), 9


@dataclass(frozen=True)
class Timing:
    """Seconds of one way to prefill: the median of the rounds and the quartiles around it."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class PrefillResult:
    """One setting measured.

    Attributes:
        keep_ratio, prune_layer: The setting.
        visual_tokens: (before, after).
        full, ours, limit: Timings of the language model's prefill; `ours` includes selection.
        signals: Seconds that scoring in the vision encoder adds.
        ratio: (ours + signals) / limit.
        bound: limit of a method that prunes at `prune_layer`: K full layers, the rest short.
        ratio_to_bound: (ours + signals) / bound.
    """

    keep_ratio: float
    prune_layer: int
    visual_tokens: tuple[int, int]
    full: Timing
    ours: Timing
    limit: Timing
    signals: float
    ratio: float
    bound: float
    ratio_to_bound: float


MARKERS = TurnMarkers(OPENING, CLOSING, (IMAGE_TOKEN, *OPENING, CLOSING))


def made_up_prompt(config: Any, device: torch.device) -> Tensor:
    """(1, S) ids: a user turn with one picture of 13 tiles and a question of 32 tokens."""
    generator = torch.Generator().manual_seed(0)
    question = torch.randint(100, 4000, (QUESTION,), generator=generator).tolist()
    image = [IMAGE_TOKEN] * (TILES * config.image_seq_length)
    before = torch.randint(100, 4000, (TEXT_BEFORE,), generator=generator).tolist()
    return torch.tensor([[*before, *OPENING, 10, *image, 11, *question, CLOSING, 12]], device=device)


def timing(values: Sequence[float]) -> Timing:
    """Median and quartiles of the timed rounds."""
    low, _, high = statistics.quantiles(values, n=4)
    return Timing(statistics.median(values), low, high)


def measure_signals(model: InternVLForConditionalGeneration, rounds: int) -> float:
    """Median seconds of [CLS] attention and pooling for 13 tiles, on random queries and keys."""
    vision: Any = model.config.vision_config
    patches = model.config.image_seq_length * round(1 / model.config.downsample_ratio) ** 2
    width = vision.hidden_size // vision.num_attention_heads
    shape = (TILES, vision.num_attention_heads, 1 + patches, width)
    queries, keys = (torch.randn(shape, dtype=model.dtype, device=model.device) for _ in range(2))
    run = lambda: scoring.pool_pixel_shuffle(scoring.cls_attention(queries, keys), 2)  # noqa: E731
    return statistics.median(seconds(run, model.device) for _ in range(rounds + 1))


@torch.inference_mode()
def bench_prefill(
    model: InternVLForConditionalGeneration,
    keep_ratios: Sequence[float],
    prune_layers: Sequence[int],
    rounds: int,
    advance: Callable[[], None] = lambda: None,
) -> list[PrefillResult]:
    """Measure every keep ratio at every layer; each round runs all contenders of a setting once, in turn.

    Args:
        rounds: Timed rounds after one warm-up.
        advance: Called after each round.
    """
    ids = made_up_prompt(model.config, model.device)
    torch.manual_seed(0)
    config: Any = model.config
    side = config.vision_config.image_size[0]
    pixels = torch.randn(TILES, 3, side, side, dtype=model.dtype, device=model.device)
    with PyramidPruner(record_scores=False)(model, MARKERS):
        encoded = model.get_image_features(pixels, return_dict=True)
    signals = measure_signals(model, rounds)
    layers = config.text_config.num_hidden_layers
    visual = TILES * config.image_seq_length

    def prefill(**inputs: Any) -> Any:
        return model(logits_to_keep=1, use_cache=True, **inputs)

    whole = functools.partial(prefill, input_ids=ids, mm_encoder_outputs={"image": encoded})
    results = []
    for layer in prune_layers:
        for keep in keep_ratios:
            pruner: Pruner = PyramidPruner(keep_ratio=keep, prune_layer=layer, record_scores=False)
            handle = attach(model, pruner, MARKERS)
            whole()
            handle.remove()
            (image,) = handle.trace.images
            stays = torch.ones(ids.shape[1], dtype=torch.bool)
            stays[image.positions] = False
            stays[image.positions[image.kept]] = True
            places = stays.nonzero().T.to(model.device)
            embeds = model.get_input_embeddings()(ids).masked_scatter(
                (ids == IMAGE_TOKEN)[..., None], encoded.pooler_output.to(model.dtype)
            )[:, places[0]]
            contenders: dict[str, Callable[[], Any]] = {
                "full": whole,
                "ours": whole,
                "limit": functools.partial(prefill, inputs_embeds=embeds, position_ids=places),
            }
            times: dict[str, list[float]] = {name: [] for name in contenders}
            for _ in range(rounds + 1):
                for name, run in contenders.items():
                    with pruner(model, MARKERS) if name == "ours" else contextlib.nullcontext():
                        times[name].append(seconds(run, model.device))
                advance()
            full, ours, limit = (timing(times[name][1:]) for name in ("full", "ours", "limit"))
            spent = ours.median + signals
            bound = (layer * full.median + (layers - layer) * limit.median) / layers
            results.append(
                PrefillResult(
                    keep, layer, (visual, len(image.kept)), full, ours, limit, signals,
                    spent / limit.median, bound, spent / bound,
                )
            )  # fmt: skip
    return results
