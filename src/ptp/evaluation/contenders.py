"""What competes in an evaluation: methods with settings of their own, and the baselines that are no pruners."""

from dataclasses import dataclass
from typing import Any

from scipy.optimize import brentq

from ..methods import METHODS
from ..pruner import Pruner
from ..selection import total_budget

FULL, BLANK, DOWNSAMPLE = "full", "blank", "downsample"
"""All tokens; all tokens of a blank picture (what can be guessed); a picture of fewer tiles, so fewer pixels."""


@dataclass(frozen=True)
class Contender:
    """A method with some settings of its own, as `pyramid:alpha=0:region=uniform`, or a baseline."""

    name: str
    method: str
    settings: dict[str, Any]

    def pruner(self, keep_ratio: float) -> Pruner:
        """The method at a keep ratio, without score maps."""
        return METHODS[self.method](keep_ratio=keep_ratio, record_scores=False, **self.settings)


def matched_ratio(contender: Contender, average: float, layers: int) -> float | None:
    """The keep ratio at which a contender works on a share of `average` visual tokens, averaged over the layers.

    None where it cannot: a method that prunes after two of six layers never averages less than a third. `downsample`
    has its tokens in all layers, so for it the two are the same.
    """
    if contender.method == DOWNSAMPLE:
        return average
    excess = lambda ratio: contender.pruner(ratio).average_keep(layers) - average  # noqa: E731
    least = 1e-4
    if excess(least) >= 0:
        return None
    return float(brentq(excess, least, 1.0, xtol=1e-6)) if average < 1 else 1.0


def parse_contender(text: str) -> Contender:
    """Read `method[:setting=value]...`.

    Raises:
        ValueError: unknown method or setting; the message lists the valid ones.
    """
    method, *parts = text.strip().split(":")
    if method == DOWNSAMPLE and not parts:
        return Contender(DOWNSAMPLE, DOWNSAMPLE, {})
    if method not in METHODS:
        raise ValueError(f"Method must be one of {', '.join([*METHODS, DOWNSAMPLE])}, got {method!r}. Choose one of these.")
    fields = {
        name: f for name, f in METHODS[method].__dataclass_fields__.items() if name not in ("keep_ratio", "record_scores")
    }
    settings: dict[str, Any] = {}
    for part in parts:
        name, _, value = part.partition("=")
        if name not in fields:
            raise ValueError(f"Settings of {method} are {', '.join(fields)}, got {part!r}. Write one as alpha=0.")
        settings[name] = _parse(value)
    contender = Contender(text.strip(), method, settings)
    contender.pruner(0.5)  # a wrong value is refused before any picture is drawn
    return contender


def _parse(value: str) -> Any:
    if value in ("None", "none"):
        return None
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def downsampled_tiles(keep_ratio: float, tiles: int, tokens_per_tile: int) -> int:
    """Tiles (thumbnail not counted) of a smaller picture with at most the tokens that pruning would keep.

    Tokens come in whole tiles, so it often has fewer; it never has less than one tile, without a thumbnail.

    Args:
        tiles: Tiles of the picture without its thumbnail.
    """
    count = tiles + (tiles > 1)
    return max(1, total_budget(keep_ratio, count * tokens_per_tile) // tokens_per_tile - 1)
