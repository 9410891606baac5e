"""What `check_adapter` found, and how it says that something is wrong."""

from dataclasses import dataclass
from typing import Any

ORACLES = {
    "layout": "`image_token_id` is another token's, or `locate` takes line ends or markers for visual tokens, loses some, or "
    "counts a tile's tokens wrongly",
    "encoder": "`vision_depth` or `vision_embeddings` stands for a layer that is not the one that feeds the projector "
    "(`vision_feature_layer` counts from the end), or `core`, `vision` or `text` is another module",
    "boxes": "`Span.positions` is in another order than the tiles of its `Layout` (tile by tile, raster order in each), or a "
    "`Tile` has a wrong box, or rows and columns are exchanged",
    "saliency": "`pool` brings patches onto the wrong tokens, `Span.units` is in another order than the encoder's, `has_cls` "
    "is wrong, or `vision_attention` has another layer's modules, heads or scale",
    "relevance": "`TextModel` reads the language model's queries and keys in the wrong place: projections, norms, rotary "
    "positions, heads or scale are not as in its attention",
    "attentions": "something is read that one attention has and the other has not, or has in another form",
    "keep all": "`locate` changes an argument it was given, or the model's positions depend on something that pruning hides",
    "masking": "features or arguments that the language model gets per visual token stay longer than their tokens "
    "(`late_features`), or the text model counts what is left (windows) and must be refused",
    "batch": "`locate` does not keep the rows of a batch, or their padding, apart",
    "decode": "the model computes positions or masks of later tokens from something that pruning shortens",
    "nothing left": "`__init__` changes the model",
}
"""What is checked, and what is usually the cause where it fails."""


class CheckFailed(AssertionError):
    """An adapter does not do what pruning needs.

    Attributes:
        oracle: Which check failed, one of `ORACLES`. settings: Under which settings. problem: What is wrong, by how much.
    """

    def __init__(self, oracle: str, settings: str, problem: str) -> None:
        self.oracle, self.settings, self.problem = oracle, settings, problem
        where = f" with {settings}" if settings else ""
        super().__init__(f"{oracle}{where}: {problem.rstrip('.')}. The usual cause: {ORACLES[oracle]}.")


@dataclass(frozen=True)
class Check:
    """One thing that was checked, and holds.

    Attributes:
        oracle, settings: What, and under which settings.
        error: The largest deviation. limit: How large it may be.
    """

    oracle: str
    settings: str
    error: float = 0.0
    limit: float = 0.0

    def __str__(self) -> str:
        found = f": {self.error:.1e} of {self.limit:.0e}" if self.limit else ""
        return f"{self.oracle}, {self.settings}{found}"


class Report(tuple[Check, ...]):
    """All that was checked; a table when printed."""

    def __str__(self) -> str:
        lines = []
        for oracle in dict.fromkeys(check.oracle for check in self):
            those = [check for check in self if check.oracle == oracle]
            worst = max(those, key=lambda check: check.error)
            error = f", off by {worst.error:.1e} at most (limit {worst.limit:.0e})" if worst.limit else ", exact"
            lines.append(f"{oracle:<13}{len(those):>3} checked{error}")
        return "\n".join(lines)


def require(oracle: str, settings: str, holds: bool, problem: str) -> None:
    """Raise CheckFailed unless it holds."""
    if not holds:
        raise CheckFailed(oracle, settings, problem)


def near(oracle: str, settings: str, found: Any, expected: Any, limit: float, what: str) -> Check:
    """The check that two tensors agree to `limit`; `what` is their name in the error."""
    if found.shape != expected.shape:
        problem = f"{what} must be {tuple(expected.shape)}, got {tuple(found.shape)}"
        raise CheckFailed(oracle, settings, problem)
    error = float((found.float() - expected.float()).abs().max()) if found.numel() else 0.0
    if not error <= limit:
        share = float(((found.float() - expected.float()).abs() > limit).float().mean())
        raise CheckFailed(
            oracle, settings, f"{what} differs by {error:.2g} where {limit:.0e} is allowed ({share:.0%} of the values do)"
        )
    return Check(oracle, settings, error, limit)
