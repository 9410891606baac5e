"""Which tokens of a prompt are the user's instruction."""

import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .given import check_instruction, find_words, mask_of_rows, words_of_rows
from .labels import phrases, without_labels
from .template import learn_turns
from .text import MARKERS, PADDING, PICTURE, VISUAL, PromptText, Spelling
from .tokenizer import chat_templates, find_processor
from .turns import Turns

EXPLICIT = "To say it explicitly, pass instruction=... (the words as they stand in the prompt, or a (B, S) mask)."


@dataclass(frozen=True, eq=False)
class InstructionFinder:
    """Finds the user's words in prompts. Many threads may use one.

    Attributes:
        spelling: How ids read; None where no tokenizer is known and the instruction is given as a mask.
        turns: What each template writes around them, the processor's first; None for one that cannot be learned from.
        sentences: Match what the processor writes around pictures.
        given: The instruction where it was stated: words for the rows, or a (B, S) mask.
    """

    spelling: Spelling | None
    turns: tuple[Turns | None, ...] = ()
    sentences: re.Pattern[str] = field(default_factory=lambda: phrases(None))
    given: tuple[str, ...] | Tensor | None = None
    _warned: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, model: PreTrainedModel, processor: Any | None, instruction: Any | None = None) -> "InstructionFinder":
        """Learn from the chat templates of `processor` and its tokenizer how they write the user's turns.

        Args:
            model: Where `processor` is None, what is saved next to its weights is used.
            processor: The model's processor, or its tokenizer.
            instruction: None: found by the template. The words themselves, a list of them (one for each row), or a mask
                (B, S) of bool or integers.

        Raises:
            ValueError: there is no tokenizer (and no mask), `processor` is neither, or `instruction` is none of these or empty.
        """
        given = check_instruction(instruction)
        found = find_processor(model, processor)
        if found is None:
            if isinstance(given, Tensor):
                return cls(None, given=given)
            raise ValueError(
                "To find the instruction in a prompt takes the model's tokenizer, and the model comes without one. Pass "
                "processor=... (or a tokenizer) next to the model, or the instruction as a (B, S) mask, or use alpha=0."
            )
        spelling = Spelling(getattr(found, "tokenizer", found))
        turns = () if given is not None else tuple(learn_turns(spelling, template) for template in chat_templates(found))
        return cls(spelling, turns, phrases(found), given)

    def mask(self, input_ids: Tensor, is_token: Tensor, visual: Tensor) -> Tensor:
        """Mark the tokens of the user's own words in the last user turn of each row.

        The template whose turn is found first is the one. Where there is a template and no turn of it, all words are taken,
        and a warning says so, once.

        Args:
            input_ids: (B, S) int64. is_token: (B, S) bool, False is padding. visual: (B, S) bool.

        Returns:
            (B, S) bool on the device of `input_ids`.

        Raises:
            ValueError: a given instruction is not in a row with pictures, or does not fit the batch.
        """
        if isinstance(self.given, Tensor):
            return mask_of_rows(self.given, input_ids) & is_token & ~visual
        assert self.spelling is not None  # only a mask goes without
        words = None if self.given is None else words_of_rows(self.given, len(input_ids))
        rows = input_ids.where(is_token, PADDING).masked_fill(visual & is_token, VISUAL).cpu()  # one copy
        mask = torch.zeros(rows.shape, dtype=torch.bool)
        for number, row in enumerate(rows):
            prompt = PromptText.of(self.spelling, row)
            if words is None:
                for start, end in self.own_words(prompt):
                    mask[number, prompt.tokens(start, end)] = True
                continue
            places = find_words(prompt, words[number])
            if places is not None:
                mask[number, places] = True
            elif (row == VISUAL).any():
                raise ValueError(
                    f"instruction must stand in the prompt, and row {number} lacks it: {words[number]!r}. Pass the words as "
                    "they stand there, a list with those of each row, or a (B, S) mask."
                )
        return mask.to(input_ids.device)

    def words(self, ids: Sequence[int] | Tensor, mask: Tensor | None = None) -> str:
        """Ids as a person reads them, special tokens skipped; empty without a tokenizer.

        Args:
            ids: (S,). mask: (S,) bool, which of them to read; a space is read where some are left out. None: all.
        """
        ids = torch.as_tensor(ids)
        if self.spelling is None or not len(ids):
            return ""
        if mask is None:
            return self.spelling.words(ids.tolist())
        places = mask.nonzero()[:, 0].cpu()
        runs = torch.tensor_split(ids.cpu()[places], ((places[1:] - places[:-1]) > 1).nonzero()[:, 0] + 1)
        return " ".join(filter(None, (self.spelling.words(run.tolist()) for run in runs)))

    def own_words(self, prompt: PromptText) -> Iterator[tuple[int, int]]:
        """Start and end of each unbroken part of the user's words.

        White space at a part's ends is the template's, but spaces before a picture: those are the user's.
        """
        found = next((turn for turns in self.turns if turns and (turn := turns.find(prompt.text))), None)
        start, end = (found.start, found.end) if found else (0, len(prompt.text))
        text = without_labels(prompt.text[start:end], self.sentences)
        parts = [part for part in re.finditer(f"[^{MARKERS}]+", text) if part[0].strip()]
        for part in parts:
            own = part[0].rstrip("\n") if part is not parts[-1] else part[0].rstrip()
            yield start + part.start() + len(own) - len(own.lstrip()), start + part.start() + len(own)
        if found is None and self.turns and parts:
            self._warn("No user's turn of the chat template was found in the prompt: all of its words were taken", text)
        elif found and found.guessed and PICTURE in text:
            self._warn("The template writes system prompts into the user's turn: the first paragraph was taken too", text)

    def _warn(self, what: str, text: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            words = " ".join(re.sub(f"[{MARKERS}]", " ", text).split())
            warnings.warn(f"{what} as the instruction: {words[:80]!r}. {EXPLICIT}", stacklevel=2)
