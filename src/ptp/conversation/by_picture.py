"""Which words each picture of a conversation is shown with: those of the user's turn that it stands in."""

from collections.abc import Sequence

import torch

from .instruction import InstructionFinder
from .text import VISUAL, PromptText


def words_of_pictures(finder: InstructionFinder, ids: Sequence[int], picture_id: int) -> list[list[int]]:
    """The ids of the user's words in the turn that each picture belongs to: later turns do not change them.

    A picture outside of the user's turns belongs to the next one. Where no turn is found, all words are taken, and a warning
    says so.

    Args:
        ids: Of the prompt, each picture one token. picture_id: Its id.

    Returns:
        One list of ids for each picture, in prompt order.
    """
    assert finder.spelling is not None  # only a stated mask goes without
    row = torch.tensor(ids)
    row[row == picture_id] = VISUAL
    prompt = PromptText.of(finder.spelling, row)
    places = (row == VISUAL).nonzero()[:, 0].tolist()
    found: dict[int, list[int]] = {}
    words = []
    for place in places:
        end = _end_of_turn(finder, prompt, place)
        if end not in found:
            part = PromptText(prompt.text[:end], prompt.owners[:end])
            found[end] = [number for own in finder.own_words(part) for number in ids[prompt.tokens(*own)]]
        words.append(found[end])
    return words


def _end_of_turn(finder: InstructionFinder, prompt: PromptText, place: int) -> int:
    """Where the text of the turn ends that the token at a place of the row belongs to; the whole prompt's, without turns."""
    at = max(n for n, (first, _) in enumerate(prompt.owners) if first <= place)
    for turns in finder.turns:
        if turns is None or turns.find(prompt.text) is None:
            continue
        for closing in turns.closing.finditer(prompt.text, at):
            turn = turns.find(prompt.text[: closing.start()])
            if turn is not None and turn.end > at:
                return closing.start()
        break
    return len(prompt.text)
