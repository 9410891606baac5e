"""Methods with settings of their own, by one word: `pyramid`, or `pyramid:alpha=0:region=uniform`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scipy.optimize import brentq

from ..pruner import Pruner
from . import METHODS

LEAST_RATIO = 1e-4


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
        excess = lambda ratio: self.pruner(ratio).average_keep(layers) - average  # noqa: E731
        return None if excess(LEAST_RATIO) >= 0 else float(brentq(excess, LEAST_RATIO, 1.0, xtol=1e-6))


def parse_variants(text: str, others: Sequence[str] = ()) -> list[Variant]:
    """Read a comma-separated list of `method[:setting=value]...`; "all" is every method.

    Args:
        others: Names that are no methods but may stand in the list too.

    Raises:
        ValueError: unknown method or setting; the message lists the valid ones.
    """
    names = [name.strip() for part in text.split(",") for name in ([*METHODS, *others] if part.strip() == "all" else [part])]
    return [Variant(name, name, {}) if name in others else _parse(name, others) for name in dict.fromkeys(names)]


def _parse(text: str, others: Sequence[str]) -> Variant:
    method, *parts = text.split(":")
    if method not in METHODS:
        raise ValueError(f"Method must be one of {', '.join([*METHODS, *others])}, got {method!r}. Choose one of these.")
    fields = [name for name in METHODS[method].__dataclass_fields__ if name not in ("keep_ratio", "record_scores")]
    settings: dict[str, Any] = {}
    for part in parts:
        name, _, value = part.partition("=")
        if name not in fields:
            raise ValueError(f"Settings of {method} are {', '.join(fields)}, got {part!r}. Write one as {method}:alpha=0.")
        settings[name] = _value(value)
    variant = Variant(text, method, settings)
    variant.pruner(0.5)  # a wrong value is refused before any work is done
    return variant


def _value(text: str) -> Any:
    if text in ("None", "none"):
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
