"""Where a prompt's last user turn is, by what a chat template writes around it."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from .text import MARKERS, is_marker


@dataclass(frozen=True)
class Turn:
    """A user's turn in a `PromptText`: `text[start:end]`; `guessed` where its first paragraph may be a system prompt."""

    start: int
    end: int
    guessed: bool = False


@dataclass(frozen=True)
class Turns:
    """What a template writes around the user's words.

    Attributes:
        opening, closing: Match what stands before and behind them.
        later: What stands before any but the first, white space removed; None where the first looks the same.
        system: Which of the turns the template writes the system prompt into; None where that has a place of its own.
        system_end: What parts such a system prompt from the user's words.
        tool_opening: What the results of tools begin with where the template writes them as a user's turn.
    """

    opening: re.Pattern[str]
    closing: re.Pattern[str]
    later: str | None = None
    system: Literal["first", "last"] | None = None
    system_end: str = ""
    tool_opening: str | None = None

    def find(self, text: str) -> Turn | None:
        """The last turn that is the user's; None where there is none."""
        turns, end = list[Turn](), 0
        for match in self.opening.finditer(text):
            if match.start() < end:  # within the turn before
                continue
            closes = self.closing.search(text, match.end())
            end = closes.start() if closes else len(text)
            if self.tool_opening is None or not text[match.end() : end].lstrip().startswith(self.tool_opening):
                turns.append(Turn(match.end(), end))
        if not turns or self.system is None:
            return turns[-1] if turns else None
        before = "".join(text[: turns[0].start].split())
        first = len(turns) == 1 and (self.later is None or not before.endswith(self.later))
        return self._without_system(text, turns[-1]) if first or self.system == "last" else turns[-1]

    def _without_system(self, text: str, turn: Turn) -> Turn:
        """The turn, less the system prompt written into it.

        Where a blank line is all that parts the two, only a picture between them tells them from two paragraphs of the user's:
        it has the template's blank line before it, besides what the processor writes on both its sides. Otherwise all the
        words are taken, so that none of the user's are lost: a guess, if there are several paragraphs.
        """
        own = text[turn.start : turn.end]
        if self.system_end.strip():
            ends = re.search(spaced(self.system_end.strip()), own)
            return Turn(turn.start + ends.end(), turn.end) if ends else turn
        lines = self.system_end.count("\n")
        picture = re.search(f"[{MARKERS}]", own)
        lead = own[: picture.start()] if picture else own
        if not lines or not lead.strip():
            return turn
        if picture:
            rest = re.sub(rf"\A(?:\s*[{MARKERS}])+", "", own[picture.start() :])
            gap = _lines(lead, str.rstrip)
            if rest.strip() and gap >= lines and gap > _lines(rest, str.lstrip):
                return Turn(turn.start + len(lead), turn.end)
        return Turn(turn.start, turn.end, guessed="\n" * lines in lead.strip())


def _lines(text: str, strip: Callable[[str], str]) -> int:
    """How many line ends stand at the side of a text that `strip` strips."""
    return text.count("\n") - strip(text).count("\n")


def spaced(text: str) -> str:
    """A regular expression for a template's words, whatever white space tokenizers make of the white space in them."""
    runs = [text[:1]]
    for before, character in pairwise(text):
        if is_marker(before) or is_marker(character):  # some tokenizers put a space there
            runs.append("")
        runs[-1] += character
    words = [re.escape(word) for run in runs for word in run.split()]
    left = r"(?<!\w)" if re.match(r"\w", text) else ""
    return left + r"\s*".join(words) + (r"(?!\w)" if re.search(r"\w\Z", text) else "")
