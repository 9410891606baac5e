"""What `ptp tune` lets run against each other: the one list of methods, settings and shares."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..methods import METHODS
from ..methods.parsing import Variant, parse_variant, settings_of

SHARES = (0.9, 0.75, 0.5, 0.35, 0.25, 0.15, 0.1)
"""Shares of the visual tokens that a method works on, averaged over the language model's layers."""
OF_METHOD: dict[str, tuple[str, ...]] = {"pyramid": ("alpha=0", "alpha=0.25", "alpha=0.75", "diversity=0", "published")}
"""Settings tried beside a method's own, in the words of `--methods`; of settings that it does not have they are passed over."""
LAYER, PUBLISHED = "prune_layer", "published"


@dataclass(frozen=True)
class Arm:
    """One runner of the race.

    Attributes:
        name: Of the method and its settings, as `parse_variant` reads it.
        share: Of the visual tokens, averaged over the language model's layers.
        keep_ratio: What the method is told for it.
    """

    name: str
    share: float
    keep_ratio: float

    @property
    def key(self) -> str:
        """What identifies it in a file."""
        return f"{self.name} @ {self.share:g}"

    @property
    def variant(self) -> Variant:
        """Its method."""
        return parse_variant(self.name)


def candidates(methods: Iterable[str], layers: int) -> list[Variant]:
    """Every method as it is, with the settings of `OF_METHOD`, and, where it has a `prune_layer`, before the language model and
    at a third of its depth. A name that has settings already stands for itself. What is the same is there once.

    Args:
        methods: Names, as `parse_variant` reads them.
        layers: Of the language model.

    Raises:
        ValueError: no such method, or a wrong setting.
    """
    found: list[Variant] = []
    for method in methods:
        if ":" in method:
            found.append(parse_variant(method))
            continue
        found.append(parse_variant(method))  # which says so where there is no such method
        settings = settings_of(method)
        known = [words for words in OF_METHOD.get(method, ()) if words == PUBLISHED or words.partition("=")[0] in settings]
        for words in ("", *known):
            name = f"{method}:{words}" if words else method
            found.append(parse_variant(name))
            if LAYER in settings:
                found += [parse_variant(f"{name}:{LAYER}={layer}") for layer in (0, layers // 3)]
    kinds: list[Any] = []
    different = []
    for variant in found:
        if (made := variant.pruner(0.5)) not in kinds:
            kinds.append(made)
            different.append(variant)
    return different


def all_methods() -> list[str]:
    """Every method by name."""
    return list(METHODS)


def arms(variants: Iterable[Variant], shares: Sequence[float], layers: int) -> list[Arm]:
    """Every variant at every share that it can reach: what prunes late cannot average few tokens."""
    found = [(one, share, one.matched_ratio(share, layers)) for share in shares for one in variants]
    return [Arm(variant.name, share, told) for variant, share, told in found if told is not None]
