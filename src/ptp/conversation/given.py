"""Instructions that a person states, in place of those that are found."""

import re
import unicodedata
from typing import Any

import torch
from torch import Tensor

from .text import MARKERS, PromptText

REMEDY = (
    "Pass the words as they stand in the prompt, a list of them (one for each row), or a (B, S) mask that is True for them."
)


def check_instruction(instruction: Any) -> "tuple[str, ...] | Tensor | None":
    """The instruction as words for the rows of a batch, or as a (B, S) bool mask on the CPU.

    Raises:
        ValueError: it is neither, or empty.
    """
    if instruction is None:
        return None
    if isinstance(instruction, Tensor):
        if instruction.dim() != 2 or instruction.is_floating_point() or instruction.is_complex():
            raise ValueError(
                f"instruction as a mask must be a (B, S) tensor of bool or integers, got {tuple(instruction.shape)} of "
                f"{instruction.dtype}. {REMEDY}"
            )
        return instruction.bool().cpu()
    words = (instruction,) if isinstance(instruction, str) else instruction
    if not isinstance(words, (list, tuple)) or not words or not all(isinstance(each, str) and each.strip() for each in words):
        raise ValueError(
            f"instruction must be text that is not empty, a list of such, or a mask, got {instruction!r}. {REMEDY}"
        )
    return tuple(words)


def words_of_rows(words: tuple[str, ...], rows: int) -> list[str]:
    """The words for each row of a batch; those of a smaller batch are repeated, as beams repeat its rows.

    Raises:
        ValueError: there are more of them, or they do not divide the rows.
    """
    if rows % len(words):
        raise ValueError(f"instruction has {len(words)} texts for a batch of {rows} rows. Pass one text, or one for each row.")
    return [each for each in words for _ in range(rows // len(words))]


def mask_of_rows(mask: Tensor, input_ids: Tensor) -> Tensor:
    """(B, S) bool on the device of `input_ids` (B, S); the rows of a smaller batch are repeated, as beams repeat them.

    Raises:
        ValueError: the mask is of another shape.
    """
    rows, length = input_ids.shape
    if mask.shape[1] != length or not len(mask) or rows % len(mask):
        raise ValueError(
            f"instruction as a mask must have the shape of the prompt's input_ids, {tuple(input_ids.shape)}, got "
            f"{tuple(mask.shape)}. Pass one of that shape (on a KV cache: of the new tokens), or the words themselves."
        )
    return mask.to(input_ids.device).repeat_interleave(rows // len(mask), dim=0)


def find_words(prompt: PromptText, words: str) -> Tensor | None:
    """The places in the row of the tokens of the last place where `words` stand, (R,) int64; None where they do not.

    White space is as good as other white space, and as pictures.
    """
    between = rf"[\s{MARKERS}]+"
    forms = dict.fromkeys([words, unicodedata.normalize("NFC", words), unicodedata.normalize("NFKC", words)])
    pattern = "|".join(between.join(map(re.escape, form.split())) for form in forms)
    found = list(re.finditer(pattern, prompt.text))
    if not found:
        return None
    last = found[-1]
    spans = [
        prompt.tokens(last.start() + part.start(), last.start() + part.end())
        for part in re.finditer(rf"[^\s{MARKERS}]([^{MARKERS}]*[^\s{MARKERS}])?", last[0])
    ]
    return torch.cat([torch.arange(span.start, span.stop) for span in spans])
