"""A prompt's ids as text, so that turns can be found in it however the tokenizer cuts words."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any

from torch import Tensor

MARKER = 0xF0000
"""First of the private characters that stand for special tokens: nothing that a user types can be taken for one."""
PICTURE = chr(0x10FFFF)
"""Stands for an unbroken run of visual tokens."""
CUT = chr(MARKER)
"""Stands for what is neither: no token has it."""
MARKERS = f"{chr(MARKER)}-{PICTURE}"
"""All of them, as a range of a regular expression's character class."""
PADDING, VISUAL = -1, -2
"""Stand for ids in a row that is to be read."""
HALF = "\ufffd"
"""How a token reads that holds a part of a character."""


def is_marker(character: str) -> bool:
    """Whether a character of a `PromptText` stands for a special token or a picture."""
    return ord(character) >= MARKER


class Spelling:
    """How one tokenizer's ids read: ordinary tokens as they do inside a sentence, a special token as one private character."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        numbers = sorted(special | set(tokenizer.all_special_ids))
        self.markers = {number: chr(MARKER + 1 + n) for n, number in enumerate(numbers)}
        self._pieces: dict[tuple[int, ...], str] = {}

    @cached_property
    def _before(self) -> tuple[list[int], int]:
        """An ordinary token and the length of its text: behind it, a token keeps the space it begins with."""
        ids = [i for i in self.tokenizer.encode("a", add_special_tokens=False) if i not in self.markers][:1]
        return ids, len(self._decode(ids))

    @cached_property
    def _contents(self) -> tuple[dict[str, str], re.Pattern[str]]:
        """The private character of each special token's own text, and a pattern that finds such texts."""
        characters = dict(zip(self.tokenizer.convert_ids_to_tokens(list(self.markers)), self.markers.values(), strict=True))
        longest = sorted(filter(None, characters), key=len, reverse=True)
        return characters, re.compile("|".join(map(re.escape, longest)) or r"(?!)")

    def _decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def piece(self, *ids: int) -> str:
        """The text of an id, or of several that share characters."""
        if len(ids) == 1 and ids[0] in self.markers:
            return self.markers[ids[0]]
        piece = self._pieces.get(ids)
        if piece is None:
            before, length = self._before
            text = self._decode([*before, *ids])[length:]
            piece = "".join(HALF if is_marker(character) else character for character in text)
            if len(ids) == 1:  # of runs there is no end
                self._pieces[ids] = piece
        return piece

    def of(self, text: str) -> str:
        """A string as a `PromptText` would have it: what it has of special tokens becomes private characters."""
        characters, contents = self._contents
        return contents.sub(lambda match: characters[match[0]], text)

    def words(self, ids: Sequence[int]) -> str:
        """Ids as a person reads them, without special tokens."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()


@dataclass(frozen=True)
class PromptText:
    """One row of a prompt as text.

    Attributes:
        text: Of its tokens; each run of visual tokens is one `PICTURE`, padding is left out.
        owners: For each character the first and the last place in the row of the tokens it is of.
    """

    text: str
    owners: list[tuple[int, int]]

    @classmethod
    def of(cls, spelling: Spelling, row: Tensor) -> "PromptText":
        """Read a row, (S,) int64 on the CPU: ids, `PADDING` or `VISUAL`."""
        visual = row == VISUAL
        shown = row != PADDING
        shown[1:] &= ~(visual[1:] & visual[:-1])  # of a run of visual tokens the first speaks for all
        parts, owners = [], list[tuple[int, int]]()
        for part, first, last in _pieces(spelling, shown.nonzero()[:, 0].tolist(), row[shown].tolist()):
            parts.append(part)
            owners += [(first, last)] * len(part)
        return cls("".join(parts), owners)

    def tokens(self, start: int, end: int) -> slice:
        """The places of the tokens that `text[start:end]`, which is not empty, is of."""
        return slice(self.owners[start][0], self.owners[end - 1][1] + 1)


def _pieces(spelling: Spelling, places: list[int], ids: list[int]) -> Iterator[tuple[str, int, int]]:
    """Text, first and last place of each token, or of each run of tokens that share characters."""
    read = [(PICTURE if number == VISUAL else spelling.piece(number), n) for n, number in enumerate(ids)]
    for shared, run in groupby(read, lambda each: HALF in each[0]):
        if shared:
            own = [n for _, n in run]
            yield spelling.piece(*ids[own[0] : own[-1] + 1]), places[own[0]], places[own[-1]]
        else:
            yield from ((part, places[n], places[n]) for part, n in run)
