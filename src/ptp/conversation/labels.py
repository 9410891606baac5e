"""The words that templates and processors write before pictures: "Frame1: ", "<0.5 seconds>", "00:01 "; or behind them: "3"."""

import inspect
import re
import sys
from collections.abc import Iterator
from typing import Any

from .text import CUT, MARKERS, PICTURE

AHEAD = rf"(?=[\s{MARKERS}]*{PICTURE})"
NUMBERED = r"(?:(?:[^\W\d]+[ ])?[^\W\d]+[-#\ ]?\d[\d.:]*\s*:|\d+:\d\d[ ])"
BRACKETED = re.compile(rf"<[^<>\n]{{1,40}}>{AHEAD}")
"""<0.5 seconds>; <row_1_col_1> where it is no token."""
BEHIND = re.compile(rf"(?<={PICTURE}[{MARKERS}])\d+(?:\.\d+ seconds)?(?=[{MARKERS}])")
"""GLM's frames have their second behind them, 3 or 3.0 seconds, before the next one or the video's end; a user who writes
nothing but a number between two pictures is not told from that."""
COUNTED = re.compile(rf"(?<=[{MARKERS}])\d+(?=[{MARKERS}]{{2,}}{PICTURE})")
"""MiniCPM-V's pictures are counted between two markers, and a third one opens them."""
LABEL = re.compile(
    rf"""(?:(?:\A|(?<=[\n{MARKERS}]))\s*{NUMBERED}             # a line of its own: Frame1:, Image-1:, Frame from 00:01:, 00:01
    | (?<=\S)[A-Z][a-z]+[-#\ ]?\d[\d.:]*\s*:                # joined to what is before it: What is this?Picture 1:
    ){AHEAD}""",
    re.VERBOSE,
)


def phrases(processor: Any | None) -> re.Pattern[str]:
    """Matches the sentences that a processor writes around pictures and frames, read off its code.

    They are the format strings beside its class ("... series of {frame_count} frames ...") and the strings in its methods
    that put tokens in a picture's place, if they have three words.
    """
    found = {text for text in _strings(processor) if len(re.findall(r"[^\W\d]{2,}", re.sub(r"\{\w+\}", "", text))) > 2}
    patterns = [
        ".{1,40}?".join(r"\s+".join(map(re.escape, part.split())) for part in re.split(r"\s*\{\w+\}\s*", text.strip()))
        for text in found
        if "{%" not in text and "{{" not in text
    ]
    return re.compile(f"(?:{'|'.join(sorted(patterns, key=len, reverse=True)) or '(?!)'}){AHEAD}")


def _strings(processor: Any) -> Iterator[str]:
    for kind in type(processor).__mro__:
        module = kind.__module__.rpartition(".")[2]
        if module == "processing_utils" or not module.startswith("processing_"):  # transformers names them so
            continue
        for value in vars(sys.modules[kind.__module__]).values():
            if isinstance(value, str) and re.search(r"\{\w+\}", value):
                yield value
        for name, method in vars(kind).items():
            if name.startswith("replace_") and inspect.isfunction(method):
                yield from (value for value in method.__code__.co_consts if isinstance(value, str))


def without_labels(text: str, sentences: re.Pattern[str]) -> str:
    """The text of a turn, as long as it was, with `CUT` in the place of labels."""
    for pattern in (BRACKETED, BEHIND, COUNTED, LABEL, sentences):  # each may stand before one of those before it
        text = pattern.sub(lambda match: CUT * len(match[0]), text)
    return text
