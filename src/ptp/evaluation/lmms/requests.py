"""From lmms-eval's questions to what a processor and `generate` take; imports nothing of lmms-eval."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

MAX_NEW_TOKENS = 1024
"""Longest answer where a task does not say, as most of lmms-eval's own classes have it."""


@dataclass(frozen=True)
class Asked:
    """A question of a task, as `apply_chat_template` takes it."""

    task: str
    messages: list[dict[str, Any]]


def prompt_of(task: str, messages: Sequence[dict[str, Any]], system_prompt: str | None = None) -> Asked:
    """A question, from the messages that lmms-eval makes of it.

    Raises:
        ValueError: it shows something other than text and pictures.
    """
    turns = [{"role": turn["role"], "content": [_part(task, part) for part in turn["content"]]} for turn in messages]
    if system_prompt:
        turns = [turn for turn in turns if turn["role"] != "system"]
        turns.insert(0, {"role": "system", "content": [{"type": "text", "text": system_prompt}]})
    return Asked(task, turns)


def _part(task: str, part: dict[str, Any]) -> dict[str, Any]:
    if part["type"] == "text":
        return {"type": "text", "text": part["text"]}
    if part["type"] == "image" and isinstance(part["url"], Image.Image):
        return {"type": "image", "image": part["url"].convert("RGB")}
    kind = f"a picture as {type(part['url']).__name__}" if part["type"] == "image" else part["type"]
    raise ValueError(f"Task {task!r} shows {kind}: ptp evaluates questions about pictures. Leave it out of --tasks.")


def generation(settings: dict[str, Any]) -> dict[str, Any]:
    """What `generate` takes of a task's settings: greedy unless its temperature is above 0."""
    temperature = float(settings.get("temperature") or 0)
    chosen: dict[str, Any] = {"max_new_tokens": int(settings.get("max_new_tokens") or MAX_NEW_TOKENS)}
    chosen["num_beams"] = int(settings.get("num_beams") or 1)
    chosen["do_sample"] = temperature > 0 and settings.get("do_sample") is not False
    if chosen["do_sample"]:
        chosen["temperature"] = temperature
        if settings.get("top_p"):
            chosen["top_p"] = float(settings["top_p"])
    return chosen


def until(settings: dict[str, Any]) -> list[str]:
    """The strings at which a task ends an answer. Blank lines are none: lmms-eval adds them where a task names nothing, and
    its own chat classes answer past them."""
    stops = settings.get("until") or []
    return [stop for stop in ([stops] if isinstance(stops, str) else stops) if stop.strip()]
