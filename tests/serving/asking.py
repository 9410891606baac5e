"""Questions about pictures, asked of the engine and of transformers."""

import contextlib
import json
from functools import cache
from pathlib import Path

import torch
from PIL import Image

import ptp
from ptp.tiny import demo

PICTURES = Path(demo.__file__).parent / "demo_pictures"
TOKENS = 3
"""Answers are followed for so many tokens."""
SETTINGS = [
    {},
    {"keep_ratio": 0.5, "alpha": 0},
    {"keep_ratio": 0.5},
    {"keep_ratio": 0.2, "alpha": 0.8, "diversity": 0},
    {"keep_ratio": 0.1},
    {"keep_ratio": 0.25, "scope": "tile", "region": "cls_similarity", "thumbnail_keep": 0.5},
    {"keep_ratio": 0.3, "method": "visionzip"},
    {"keep_ratio": 0.3, "method": "cdpruner"},
]


@cache
def picture(name: str) -> Image.Image:
    return Image.open(PICTURES / name).convert("RGB")


def questions() -> list[tuple[str, str]]:
    """Nine: some with answers that the model is sure of, and how many signs there are, where it hesitates."""
    known = [(each["picture"], each["question"]) for each in json.loads((PICTURES / "questions.json").read_text())]
    names = list(dict.fromkeys(name for name, _ in known))
    counts = [(name, f"How many {colour} signs are there?") for name in names for colour in ("yellow", "blue")]
    return known[::3][:3] + counts


def conversation(parts) -> list[dict]:
    """Turns of the user and the assistant in turn; a picture's name in a user's turn shows it."""
    roles, turns = ("user", "assistant"), []
    for number, turn in enumerate(parts):
        pieces = [turn] if isinstance(turn, str) else turn
        content = [
            {"type": "image", "image": picture(each)} if each.endswith(".jpg") else {"type": "text", "text": each}
            for each in pieces
        ]
        turns.append({"role": roles[number % 2], "content": content})
    return turns


def request(engine, turns, settings) -> dict:
    """A prompt of the engine."""
    shown = [each for turn in turns for each in ([turn] if isinstance(turn, str) else turn) if each.endswith(".jpg")]
    text = engine.get_tokenizer().apply_chat_template(conversation(turns), tokenize=False, add_generation_prompt=True)
    asked = {"prompt": text}
    if shown:
        asked["multi_modal_data"] = {"image": [picture(name) for name in shown]}
    if settings is not None:
        asked["mm_processor_kwargs"] = {"ptp": settings}
    return asked


def ask(engine, requests) -> list:
    """One batch; its outputs with the log-probabilities of the likeliest tokens."""
    from vllm import SamplingParams

    sampling = SamplingParams(max_tokens=TOKENS, temperature=0, logprobs=5, ignore_eos=True)
    return engine.generate(requests, sampling, use_tqdm=False)


def log_probabilities(output) -> list[dict[int, float]]:
    return [{token: each.logprob for token, each in step.items()} for step in output.outputs[0].logprobs]


def pruner_of(settings):
    """The same settings in the runtime of transformers; None keeps all."""
    settings = dict(settings or {})
    method = settings.pop("method", "pyramid")
    return ptp.METHODS[method](**settings) if settings.get("keep_ratio", 1) < 1 else None


def expected(reference, turns, settings, tokens=TOKENS) -> torch.Tensor:
    """(tokens, V) log-probabilities as transformers has them, of a greedy answer."""
    model, processor = reference
    inputs = processor.apply_chat_template(
        [conversation(turns)], add_generation_prompt=True, tokenize=True, return_dict=True,
        processor_kwargs={"return_tensors": "pt"},
    )  # fmt: skip
    pruner = pruner_of(settings)
    with torch.no_grad(), contextlib.nullcontext() if pruner is None else pruner(model, processor):
        made = model.generate(
            **inputs, min_new_tokens=tokens, max_new_tokens=tokens, do_sample=False, output_logits=True,
            return_dict_in_generate=True, eos_token_id=None,
        )  # fmt: skip
    return torch.stack([logits[0].log_softmax(-1) for logits in made.logits])


def difference(output, wanted: torch.Tensor) -> float:
    """The largest of the log-probabilities of the likeliest tokens, up to where the answers part."""
    worst = 0.0
    for step, row in zip(log_probabilities(output), wanted, strict=True):
        worst = max(worst, *(abs(value - float(row[token])) for token, value in step.items()))
        if int(row.argmax()) != max(step, key=step.get):
            break
    return worst
