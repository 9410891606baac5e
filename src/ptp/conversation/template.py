"""How a chat template writes the user's turns, learned by rendering conversations with it.

Templates are programs: they cannot be read, but they can be run. A few short conversations of known words are rendered, and
what stands before and behind the user's words is remembered. Nothing is known of any particular template.
"""

import re
from os.path import commonprefix
from typing import Any, Literal

from .text import Spelling, is_marker
from .turns import Turns, spaced

USER, ANSWER, AGAIN, SYSTEM, RESULT = KNOWN = ("Quokka one", "Quokka two", "Quokka three", "Quokka four", "Quokka five")
"""Words that no template writes by itself."""
Messages = list[tuple[str, str | tuple[str, str]]]
"""(role, words) of each; two words are two parts of one message."""


def learn_turns(spelling: Spelling, template: str) -> Turns | None:
    """Learn how `template` (Jinja) writes the user's turns; None where it cannot be rendered, or drops the user's words."""
    asked: Messages = [("user", USER), ("assistant", ANSWER), ("user", AGAIN)]
    plain = _render(spelling, template, asked)
    if plain is None:
        return None
    befores, others = [_before(plain, USER), _before(plain, AGAIN)], [_before(plain, ANSWER)]
    opening = _opening(befores, others)
    guided = _render(spelling, template, [("system", SYSTEM), *asked]) or ""
    between = _behind(guided, SYSTEM)
    system: Literal["first", "last"] | None = None
    if opening.search(between):
        opening = _opening([*befores, between], [*others, _before(guided, SYSTEM)])
    elif guided.count(SYSTEM) == 1:
        system = "first" if guided.index(SYSTEM) < guided.index(USER) else "last"
    first, again = ("".join(before.split()) for before in befores)
    return Turns(
        opening,
        _closing(spelling, template, asked, plain),
        None if first.endswith(again) else again,
        system,
        between,
        _tool_opening(_render(spelling, template, [*asked[:2], ("tool", RESULT)]) or "", opening),
    )


def _render(spelling: Spelling, template: str, messages: Messages, prompt: bool = False, **settings: Any) -> str | None:
    """A conversation as a `PromptText` has it; None where the template refuses it or drops the user's words."""
    for parts in (True, False):  # some know messages of parts only, some plain strings only
        conversation: Any = [{"role": role, "content": _content(words, parts)} for role, words in messages]
        try:
            text = spelling.tokenizer.apply_chat_template(
                conversation, chat_template=template, tokenize=False, add_generation_prompt=prompt, **settings
            )
        except Exception:  # whatever a template raises, it cannot be learned from
            continue
        asked = [word for role, words in messages if role == "user" for word in ([words] if isinstance(words, str) else words)]
        if all(text.count(word) == 1 for word in asked) and "'type'" not in text:  # a list that is printed as it is
            return spelling.of(text)
    return None


def _content(words: str | tuple[str, str], parts: bool) -> str | list[dict[str, str]]:
    several = (words,) if isinstance(words, str) else words
    return [{"type": "text", "text": part} for part in several] if parts else " ".join(several)


def _before(text: str, words: str) -> str:
    """What stands between the known words before `words`, or the beginning, and `words`."""
    return re.split("|".join(KNOWN), text[: text.index(words)])[-1] if words in text else ""


def _behind(text: str, words: str) -> str:
    """What stands behind `words`, up to the next known words or the end."""
    return re.split("|".join(KNOWN), text[text.index(words) + len(words) :])[0] if words in text else ""


def _opening(befores: list[str], others: list[str]) -> re.Pattern[str]:
    """Matches what opens a user's turn: from its last special token on that no other role's opening shares.

    Args:
        befores: What stands before the user's words, in several places. others: What stands before other roles'.
    """
    befores, others = [before.rstrip() for before in befores], [other.rstrip() for other in others]
    tails = [_tail(before, others) for before in befores]
    patterns = [_any_of(set(tails))]
    if len(set(tails)) > 1 or not all(tails):
        common = commonprefix([before[::-1] for before in befores])[::-1].lstrip()  # noqa: RUF071 (of characters)
        if common and not any(other.endswith(common) for other in others):
            # Without special tokens the words alone open a turn. With them they do so only where a prompt begins: after a
            # turn that is on a KV cache.
            patterns.append((r"\A\s*" if all(tails) else "") + spaced(common))
    return re.compile("|".join(filter(None, patterns)) or r"(?!)")


def _tail(before: str, others: list[str]) -> str:
    """The shortest end of `before` that begins with a special token and is no other's end; empty without one."""
    ends = [before[n:] for n in range(len(before) - 1, -1, -1) if is_marker(before[n])]
    return next((end for end in ends if not any(other.endswith(end) for other in others)), "")


def _closing(spelling: Spelling, template: str, asked: Messages, plain: str) -> re.Pattern[str]:
    """Matches what closes a user's turn: a special token, or the words that follow."""
    prompted = _render(spelling, template, asked, prompt=True) or ""
    found, next_roles = set[str](), {""}
    for behind in (_behind(plain, USER), _behind(plain, AGAIN), _behind(prompted, AGAIN)):
        first, rest = _first(behind)
        found.add(first)
        next_roles.add(_first(rest)[0])
    closing = _any_of(found) or r"(?!)"
    switch, _ = _first(_behind(_render(spelling, template, asked, enable_thinking=False) or "", AGAIN))
    if switch and switch not in found and not is_marker(switch[0]):  # GLM's "/nothink", joined to the user's words
        closing = rf"{spaced(switch)}(?=\s*(?:\Z|{closing}))|{closing}"
    parts = _behind(_render(spelling, template, [("user", (USER, AGAIN))]) or "", USER)
    if re.search(closing, parts):  # each part of a message is closed: only before another role, that was the last
        closing = rf"(?:{closing})(?=\s*(?:\Z|{_any_of(next_roles)}))"
    return re.compile(closing)


def _first(behind: str) -> tuple[str, str]:
    """The special token that a text begins with, or what is before the first; and the rest."""
    behind = behind.strip()
    marker = next((n for n, character in enumerate(behind) if is_marker(character)), len(behind))
    return behind[: marker or 1].rstrip(), behind[marker or 1 :]


def _any_of(texts: set[str]) -> str:
    return "|".join(spaced(each) for each in sorted(texts - {""}, key=len, reverse=True))


def _tool_opening(used: str, opening: re.Pattern[str]) -> str | None:
    """What stands before a tool's result in a user's turn; None where it is no such turn."""
    before = _before(used, RESULT)
    found = list(opening.finditer(before))
    return before[found[-1].end() :].strip() or None if found else None
