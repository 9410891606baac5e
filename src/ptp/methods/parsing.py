"""Methods with settings of their own, by one word: `pyramid`, `pyramid:alpha=0:region=uniform`, or `pyramid:published`.

Every command reads methods this way. A value is what the setting's declared type makes of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ..pruner import Pruner
from . import METHODS

LEAST_RATIO = 1e-4
ELSEWHERE = ("keep_ratio", "record_scores")
"""Settings that commands set themselves."""
WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "a name",
    bool: "true or false",
    tuple[int, ...]: "whole numbers joined by +",
    NoneType: "none",
}
"""What is written for a value of each type."""
CHOICES: dict[Any, dict[str, Any]] = {bool: {"true": True, "false": False}, NoneType: {"none": None}}


@dataclass(frozen=True)
class Variant:
    """A method with some settings of its own.

    Attributes:
        name: As the user wrote it.
        method: Its key in `METHODS`.
        settings: What differs from the method's defaults.
    """

    name: str
    method: str
    settings: dict[str, Any]

    def pruner(self, keep_ratio: float) -> Pruner:
        """The method at a keep ratio, without score maps."""
        return METHODS[self.method](keep_ratio=keep_ratio, record_scores=False, **self.settings)

    def matched_ratio(self, average: float, layers: int) -> float | None:
        """The keep ratio at which it works on a share of `average` visual tokens, averaged over `layers` layers.

        None where it cannot: a method that prunes after two of six layers never averages less than a third.
        """
        if average == 1:
            return 1.0
        low, high = LEAST_RATIO, 1.0
        if self.pruner(low).average_keep(layers) >= average:
            return None
        while high - low > 1e-7:  # more kept at the end is more on average
            middle = (low + high) / 2
            low, high = (middle, high) if self.pruner(middle).average_keep(layers) < average else (low, middle)
        return (low + high) / 2


def parse_variants(text: str, others: Sequence[str] = ()) -> list[Variant]:
    """Read a comma-separated list of `method[:setting=value]...`; "all" is every method.

    Args:
        others: Names that are no methods but may stand in the list too.

    Raises:
        ValueError: unknown method or setting, or a value that it cannot take; the message says what is valid.
    """
    names = [name.strip() for part in text.split(",") for name in ([*METHODS, *others] if part.strip() == "all" else [part])]
    return [Variant(name, name, {}) if name in others else parse_variant(name, others) for name in dict.fromkeys(names)]


def parse_variant(text: str, others: Sequence[str] = ()) -> Variant:
    """Read one `method[:published][:setting=value]...`. Arguments and errors as `parse_variants`."""
    text = text.strip()
    method, *parts = text.split(":")
    if method not in METHODS:
        raise ValueError(f"Method must be one of {', '.join([*METHODS, *others])}, got {method!r}. Choose one of these.")
    known = settings_of(method)
    settings: dict[str, Any] = {}
    preset = _published(method) if parts[:1] == ["published"] else {}
    for part in parts[bool(preset) :]:
        name, equals, value = part.partition("=")
        if name not in known or not equals:
            raise ValueError(f"Settings of {method} are {', '.join(known)}, got {part!r}. Write one as {method}:NAME=VALUE.")
        if name in settings:
            raise ValueError(f"Setting {name} of {method} is given twice in {text!r}. Leave one out.")
        settings[name] = _converted(method, name, value, known[name])
    variant = Variant(text, method, preset | settings)
    try:
        variant.pruner(0.5)  # a wrong value is refused before any work is done
    except ValueError as error:
        raise ValueError(f"{text}: {error}") from error
    return variant


def _published(method: str) -> dict[str, Any]:
    """The settings in which a method's published form differs from its defaults; empty where it is no form of its own."""
    kind = METHODS[method]
    if not hasattr(kind, "published"):
        return {}
    ours, theirs = kind(), kind.published()
    return {name: getattr(theirs, name) for name in settings_of(method) if getattr(theirs, name) != getattr(ours, name)}


def settings_of(method: str) -> dict[str, Any]:
    """The settings of a method that can be written as words, and their types."""
    declared = get_type_hints(METHODS[method])
    names = [field.name for field in fields(METHODS[method]) if field.init and field.name not in ELSEWHERE]
    return {name: declared[name] for name in names if _allowed(declared[name])}


def _alternatives(kind: Any) -> list[Any]:
    """The types that a declared one is made of: `int | None` is two."""
    return list(get_args(kind)) if get_origin(kind) in (Union, UnionType) else [kind]


def _allowed(kind: Any) -> str:
    """What may be written for a type; empty where nothing may."""
    words = [_word(part) for part in _alternatives(kind)]
    return " or ".join(words) if all(words) else ""


def _word(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    return WORDS.get(kind, "")


def _converted(method: str, name: str, text: str, kind: Any) -> Any:
    """The value that `text` stands for, as the declared type."""
    for part in sorted(_alternatives(kind), key=lambda part: part is str):  # any text is a str: the others come first
        try:
            return _as(part, text)
        except ValueError:
            continue
    raise ValueError(f"Setting {name} of {method} must be {_allowed(kind)}, got {text!r}. Write {method}:{name}=VALUE.")


def _as(kind: Any, text: str) -> Any:
    if kind in (int, float, str):
        return kind(text)
    if kind == tuple[int, ...]:
        return tuple(int(part) for part in text.split("+"))
    choices = {str(choice): choice for choice in get_args(kind)}  # of a Literal
    if kind in CHOICES:
        choices, text = CHOICES[kind], text.lower()
    if text not in choices:
        raise ValueError(text)
    return choices[text]
