"""The one place where a ratio becomes counts and scores become kept indices."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Selection:
    """What a method decided for one picture.

    Attributes:
        kept: (K,) ascending indices into the picture's N visual tokens.
        budgets: Tokens kept in each tile, in token order.
        scores: Float32 maps for the trace: "region" (T,), "token", "instruction", "fused" (N,); may be empty.
        mix: (K, N) float32, for methods that merge tokens: each kept token becomes this combination of the picture's tokens,
            which must be alive. Clusters may overlap. `averages` makes one of groups. None merges nothing.
    """

    kept: Tensor
    budgets: list[int]
    scores: dict[str, Tensor] = field(default_factory=dict)
    mix: Tensor | None = None


def averages(groups: Tensor, kept: Tensor) -> Tensor:
    """The `Selection.mix` that makes each kept token the mean of its group.

    Args:
        groups: (N,) int64, the kept token that each token goes into (a kept token: itself), -1 for those that are dropped.
        kept: (K,) ascending indices.

    Returns:
        (K, N) float32, rows summing to 1.
    """
    members = (groups[None] == kept[:, None]).float()
    return members / members.sum(dim=1, keepdim=True).clamp_min(1)


def check_keep_ratio(keep_ratio: float) -> None:
    """Raise ValueError unless `keep_ratio` is a number in (0, 1]; NaN is not."""
    if not isinstance(keep_ratio, int | float) or not 0 < keep_ratio <= 1:
        raise ValueError(
            f"keep_ratio must be in (0, 1], got {keep_ratio!r}. It is the share of visual tokens kept; pass 0.2 to keep 20 %."
        )


def check_share(name: str, value: float) -> None:
    """Raise ValueError unless the setting `name`, a weight or a share, is a number in [0, 1]; NaN is not."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {value!r}. It is a weight or a share; pass 0.5 for half.")


def total_budget(keep_ratio: float, tokens: int) -> int:
    """Visual tokens a picture keeps: max(1, round(keep_ratio * tokens)).

    Raises:
        ValueError: `keep_ratio` outside (0, 1].
    """
    check_keep_ratio(keep_ratio)
    return max(1, round(keep_ratio * tokens))


def allocate(weights: Sequence[float], capacities: Sequence[int], total: int) -> list[int]:
    """Share `total` tokens among tiles in proportion to `weights`.

    Water-filling: no tile gets more than it has, what it cannot take goes to the others in proportion; integers by
    largest remainder (of equal remainders the larger weight wins, of equal weights the earlier tile).

    Args:
        weights: One non-negative number per tile. Tiles of weight 0 get tokens only when all others are full.
        capacities: Tokens each tile has.
        total: At most the sum of `capacities`.

    Returns:
        One integer per tile; they sum to `total`.

    Raises:
        ValueError: more tokens wanted than there are, or a weight that is negative or not finite.
    """
    if not 0 <= total <= sum(capacities):
        raise ValueError(f"total must be in [0, {sum(capacities)}], got {total}. Ask for at most as many tokens as there are.")
    if any(not (math.isfinite(weight) and weight >= 0) for weight in weights):
        raise ValueError(f"weights must be finite and not negative, got {list(weights)}. Check the region scores.")
    quotas = _quotas(weights, capacities, total)
    budgets = [min(int(quota), capacity) for quota, capacity in zip(quotas, capacities, strict=True)]
    # Weights that differ by one bit may share a quota: the larger comes first even then.
    by_remainder = sorted(range(len(quotas)), key=lambda r: (budgets[r] - quotas[r], -weights[r], r))
    while (missing := total - sum(budgets)) > 0:
        for r in [r for r in by_remainder if budgets[r] < capacities[r]][:missing]:
            budgets[r] += 1
    return budgets


def _quotas(weights: Sequence[float], capacities: Sequence[int], total: int) -> list[float]:
    """What each tile would get if tokens could be cut: water-filling."""
    quotas = [0.0] * len(capacities)
    open_tiles = [r for r, weight in enumerate(weights) if weight > 0]
    left = float(total)
    while open_tiles:
        mass = math.fsum(weights[r] for r in open_tiles)
        full = [r for r in open_tiles if weights[r] / mass * left >= capacities[r]]
        if not full:
            for r in open_tiles:
                quotas[r] = weights[r] / mass * left
            return quotas
        for r in full:
            quotas[r] = float(capacities[r])
        left -= sum(capacities[r] for r in full)
        open_tiles = [r for r in open_tiles if r not in full]
    rest = [r for r, weight in enumerate(weights) if weight == 0]  # every weighted tile is full: the rest is shared by size
    size = sum(capacities[r] for r in rest)
    for r in rest:
        quotas[r] = capacities[r] / size * left if size else 0.0
    return quotas


def tile_budgets(weights: Sequence[float], sizes: Sequence[int], total: int, thumbnail_keep: float | None = None) -> list[int]:
    """Tokens each tile of one picture keeps, thumbnail included.

    Args:
        weights: One per tile without the thumbnail.
        sizes: Tokens of each tile in token order. One more entry than `weights` means that the last tile is the
            thumbnail.
        total: Tokens the picture keeps.
        thumbnail_keep: Share of the thumbnail's tokens kept; None is the picture's own share, total / sum(sizes).

    Returns:
        One integer per tile in token order; they sum to `total`.
    """
    if len(sizes) == len(weights):
        return allocate(weights, sizes, total)
    *tiles, thumbnail = sizes
    share = total / sum(sizes) if thumbnail_keep is None else thumbnail_keep
    own = min(round(share * thumbnail), total)
    own = max(own, total - sum(tiles))  # the tiles are full: the thumbnail takes the rest
    return [*allocate(weights, tiles, total - own), own]


def keep_best(scores: Tensor, sizes: Sequence[int], budgets: Sequence[int]) -> Tensor:
    """Keep each tile's best tokens.

    Args:
        scores: (N,), tile after tile.
        sizes: Tokens of each tile; they sum to N.
        budgets: Tokens each tile keeps.

    Returns:
        (sum(budgets),) int64 ascending indices. Of equal scores the earlier token is kept.
    """
    counts = torch.tensor([sizes, budgets], device=scores.device)
    tile = torch.arange(len(sizes), device=scores.device).repeat_interleave(counts[0], output_size=len(scores))
    best_first = scores.argsort(descending=True, stable=True)
    order = best_first[tile[best_first].argsort(stable=True)]  # tile after tile, best first
    rank = torch.arange(len(scores), device=scores.device) - (counts[0].cumsum(0) - counts[0])[tile]
    kept = torch.zeros_like(scores, dtype=torch.uint8).scatter_(0, order, (rank < counts[1][tile]).to(torch.uint8))
    total = sum(min(pair) for pair in zip(sizes, budgets, strict=True))  # known here: a mask as an index would be waited for
    return kept.argsort(descending=True, stable=True)[:total]


def even_budgets(sizes: Sequence[int], total: int) -> list[int]:
    """Share `total` tokens among tiles in proportion to their sizes; they sum to `total`."""
    return allocate(sizes, sizes, total)


def keep_best_among(scores: Tensor, alive: Tensor, budget: int) -> Tensor:
    """Keep the best of the tokens that earlier stages left.

    Args:
        scores: (N,).
        alive: (N',) ascending indices into `scores`.
        budget: At most N'.

    Returns:
        (budget,) int64 ascending indices. Of equal scores the earlier token is kept.
    """
    alive = alive.to(scores.device)
    return alive[keep_best(scores[alive], [len(alive)], [min(budget, len(alive))])]
