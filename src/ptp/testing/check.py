"""`check_adapter`: whether an adapter tells the truth about its model."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from PIL import Image

from ..adapters import Adapter, adapter_for
from ..methods import PyramidPruner
from ..pruner import Pruner
from .encoder import attention
from .report import Check, CheckFailed, Report
from .small import SIZES, photo
from .subject import Encode, Subject, by_chat_template
from .text_oracles import attentions, batch, decode, depths, keep_all, masking, nothing_left, read_depths, relevance
from .vision_oracles import boxes, encoder, layout, saliency

CHECKS: dict[str, Callable[[Subject], Iterator[Check]]] = {
    "layout": layout, "encoder": encoder, "boxes": boxes, "saliency": saliency, "relevance": relevance,
    "keep all": keep_all, "masking": masking, "attentions": attentions, "batch": batch, "decode": decode,
    "nothing left": nothing_left,
}  # fmt: skip
"""The oracles, in the order in which they are asked: each takes for granted what those before it found."""


def check_adapter(
    model: Any,
    processor: Any,
    *,
    pictures: Sequence[Image.Image] | None = None,
    pruners: Sequence[Pruner] | None = None,
    encode: Encode | None = None,
    tolerance: float = 1e-4,
) -> Report:
    """Check whatever pruning takes for granted about a model with a registered adapter, against the model itself.

    Nothing is printed: print what is returned. A small model takes seconds; take one whose attention is far from uniform
    (`sharpen`), since where all attention is alike no wrong place shows.

    Args:
        model: In float32 and eval mode, under any attention. It is left as it was.
        processor: Its own; it makes the prompts by its chat template.
        pictures: A few of different sizes, none of them of one colour; None draws three.
        pruners: Methods, with the settings to try. None is `PyramidPruner` at layers 0, 2 and the middle, by vision alone and
            with the instruction.
        encode: Makes left-padded inputs of a batch of (pictures, question), where no chat template can.
        tolerance: How far apart logits may be.

    Returns:
        All that was checked.

    Raises:
        CheckFailed: with the oracle, the settings, by how much, and the usual cause.
        UnsupportedModelError: no adapter takes the model.
        ValueError: the model is not ready, or its inputs cannot be made.
    """
    subject = _subject(model, processor, pictures, pruners, encode, tolerance)
    with attention(model, "sdpa"):
        return Report(check for name, oracle in CHECKS.items() for check in _asked(name, oracle, subject))


def _asked(name: str, oracle: Callable[[Subject], Iterator[Check]], subject: Subject) -> list[Check]:
    """What one oracle says; whatever else goes wrong there is the adapter's as well."""
    try:
        return list(oracle(subject))
    except CheckFailed:
        raise
    except Exception as error:
        raise CheckFailed(name, "", f"{type(error).__name__}: {error}") from error


def _subject(
    model: Any,
    processor: Any,
    pictures: Sequence[Image.Image] | None,
    pruners: Sequence[Pruner] | None,
    encode: Encode | None,
    tolerance: float,
) -> Subject:
    _ready(model)
    pictures = tuple(pictures or [photo(number, size) for number, size in enumerate(SIZES)])
    pruners = tuple(pruners or _pruners(adapter_for(model), pictures))
    subject = Subject(model, processor, encode or by_chat_template(processor), pictures, pruners, tolerance)
    try:
        subject.inputs(([subject.picture(0)], "What is it?"), ([], "Hello"))
    except Exception as error:
        raise ValueError(
            f"The processor makes no inputs of a batch with a picture and a row without ({type(error).__name__}: {error}). "
            "Give it the model's chat template, or pass encode=..."
        ) from error
    return subject


def _ready(model: Any) -> None:
    if model.training:
        raise ValueError("The model must be in eval mode, got one in training mode. Call model.eval().")
    dtype = next(model.parameters()).dtype
    if dtype != torch.float32:
        raise ValueError(f"The model must be in float32, got {dtype}: rounding would hide mistakes. Call model.float().")


def _pruners(adapter: Adapter, pictures: Sequence[Image.Image]) -> list[Pruner]:
    window = max(1, max(pictures[0].size) // 3)
    shared: dict[str, Any] = dict(keep_ratio=0.3, window=window)
    made: list[Pruner] = []
    read = read_depths(adapter)
    for layer in depths(len(adapter.layers)):
        made.append(PyramidPruner(prune_layer=layer, alpha=0, **shared))
        if layer in read:
            made.append(PyramidPruner(prune_layer=layer, relevance="attention", **shared))
    return made
