"""One question, with all visual tokens and pruned: answers, prefill times, cache sizes."""

import contextlib
import inspect
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..evaluation.encoding import encoded_already
from ..pruner import Pruner
from ..runtime import Trace
from .clock import seconds

FIRST_TOKEN_ROUNDS = 3


@dataclass(frozen=True)
class Comparison:
    """What pruning did to one question.

    Attributes:
        full, pruned: The answers.
        trace: Of the pruned prefill.
        first_token: (full, pruned) median seconds from the pixels to the first token: encoder, selection, prefill.
        encode: Seconds the vision encoder took, under the pruner.
        prefill: (full, pruned) median seconds of the language model's prefill, selection included.
    """

    full: str
    pruned: str
    trace: Trace
    first_token: tuple[float, float]
    encode: float
    prefill: tuple[float, float]


def encode_prompt(processor: Any, pictures: Sequence[Image.Image], question: str, model: Any) -> dict[str, Tensor]:
    """Model inputs of one user turn: the pictures, then the question."""
    content = [{"type": "image", "image": picture} for picture in pictures] + [{"type": "text", "text": question}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        processor_kwargs={"return_tensors": "pt"},
    )
    return {name: value.to(model.device) for name, value in inputs.items() if isinstance(value, Tensor)}


def answer(model: Any, processor: Any, inputs: dict[str, Any], max_new_tokens: int) -> str:
    """The model's greedy answer as text."""
    ids = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    return processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


@torch.inference_mode()
def compare(
    model: Any,
    processor: Any,
    pictures: Sequence[Image.Image],
    question: str,
    pruner: Pruner,
    *,
    max_new_tokens: int = 64,
    rounds: int = 5,
) -> Comparison:
    """Answer a question with all visual tokens and pruned, and time both in interleaved rounds.

    The answers are the warm-up of what is timed first: whole calls, from the pixels to the first token. Then the prefills
    alone, of pictures encoded already.

    Args:
        pictures: May be empty: then nothing is pruned.
        rounds: Timed rounds of the prefill after one warm-up; the median counts.
    """
    inputs = encode_prompt(processor, pictures, question, model)
    with pruner(model, processor) as trace:
        pruned = answer(model, processor, inputs, max_new_tokens)
    full = answer(model, processor, inputs, max_new_tokens)
    whole: tuple[list[float], list[float]] = ([], [])
    for _ in range(FIRST_TOKEN_ROUNDS):
        both: tuple[Any, Any] = (contextlib.nullcontext(), pruner(model, processor))
        for measured, context in zip(whole, both, strict=True):
            with context:
                measured.append(seconds(lambda: int(model(**inputs, logits_to_keep=1).logits[0, -1].argmax()), model.device))
    encode = 0.0
    encoder: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext
    if pictures:
        wanted = inspect.signature(model.model.get_image_features).parameters
        shown = {name: value for name, value in inputs.items() if name in wanted}
        with pruner(model, processor):
            features: list[Any] = []
            encode = seconds(lambda: features.append(model.get_image_features(**shown, return_dict=True)), model.device)
        encoder = partial(encoded_already, model, *features)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds + 1):
        contexts: tuple[Any, Any] = (contextlib.nullcontext(), pruner(model, processor))
        for measured, context in zip(times, contexts, strict=True):
            with encoder(), context:
                measured.append(seconds(lambda: model(**inputs, logits_to_keep=1), model.device))
    before, after = (statistics.median(measured[1:]) for measured in times)
    first = statistics.median(whole[0]), statistics.median(whole[1])
    return Comparison(full, pruned, trace, first, encode, (before, after))
