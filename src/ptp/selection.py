"""The one place where a ratio becomes counts and scores become kept indices."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

ROWS = 1024
"""Rows of a similarity matrix held at a time."""
TINY = 1e-12


@dataclass(frozen=True)
class Selection:
    """What a method decided for one picture.

    Attributes:
        kept: (K,) ascending indices into the picture's N visual tokens.
        budgets: Tokens kept in each tile, in token order.
        scores: Float32 maps for the trace: "region" (T,), "token", "instruction", "fused" (N,); may be empty.
        merged: (N,) int64, for methods that average tokens: the kept token each token goes into (a kept token: itself),
            -1 for those that are dropped. None averages nothing.
    """

    kept: Tensor
    budgets: list[int]
    scores: dict[str, Tensor] = field(default_factory=dict)
    merged: Tensor | None = None


def check_keep_ratio(keep_ratio: float) -> None:
    """Raise ValueError unless `keep_ratio` is in (0, 1]; NaN is not."""
    if not 0 < keep_ratio <= 1:
        raise ValueError(
            f"keep_ratio must be in (0, 1], got {keep_ratio}. It is the share of visual tokens kept; pass 0.2 to keep 20 %."
        )


def check_share(name: str, value: float) -> None:
    """Raise ValueError unless the setting `name`, a weight or a share, is in [0, 1]; NaN is not."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {value}. It is a weight or a share; pass 0.5 for half.")


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
    quotas = [0.0] * len(capacities)
    open_tiles = [r for r, weight in enumerate(weights) if weight > 0]
    left = float(total)
    while open_tiles:
        mass = math.fsum(weights[r] for r in open_tiles)
        full = [r for r in open_tiles if weights[r] / mass * left >= capacities[r]]
        for r in full or open_tiles:
            quotas[r] = float(capacities[r]) if full else weights[r] / mass * left
        if not full:
            break
        left -= sum(capacities[r] for r in full)
        open_tiles = [r for r in open_tiles if r not in full]
    else:  # every weighted tile is full (or none has weight): the rest is shared by size
        rest = [r for r, weight in enumerate(weights) if weight == 0]
        size = sum(capacities[r] for r in rest)
        for r in rest:
            quotas[r] = capacities[r] / size * left if size else 0.0
    budgets = [min(int(quota), capacity) for quota, capacity in zip(quotas, capacities, strict=True)]
    # Weights that differ by one bit may share a quota: the larger comes first even then.
    by_remainder = sorted(range(len(quotas)), key=lambda r: (budgets[r] - quotas[r], -weights[r], r))
    while (missing := total - sum(budgets)) > 0:
        for r in [r for r in by_remainder if budgets[r] < capacities[r]][:missing]:
            budgets[r] += 1
    return budgets


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
    return order[rank < counts[1][tile]].sort().values


def even_budgets(sizes: Sequence[int], total: int) -> list[int]:
    """Share `total` tokens among tiles in proportion to their sizes; they sum to `total`."""
    return allocate(sizes, sizes, total)


def keep_alive(scores: Tensor, alive: Tensor, budget: int) -> Tensor:
    """Keep the best of the tokens that earlier stages left.

    Args:
        scores: (N,).
        alive: (N',) ascending indices into `scores`.
        budget: At most N'.

    Returns:
        (budget,) int64 ascending indices. Of equal scores the earlier token is kept.
    """
    mine = scores[alive.to(scores.device)]
    return alive.to(scores.device)[keep_best(mine, [len(mine)], [min(budget, len(mine))])]


def keep_diverse(features: Tensor, budget: int) -> Tensor:
    """Greedy max-min diversity: each chosen token is the one farthest (cosine distance) from those chosen before.

    The first is the one farthest from its nearest neighbour. Costs one product of (N, D) with (D,) per token kept.

    Args:
        features: (N, D).
        budget: In [1, N].

    Returns:
        (budget,) int64 ascending indices. Of equal distances the earlier token is kept.

    Source: DivPrune, arXiv 2503.02175, algorithm 1.
    """
    if budget >= len(features):
        return torch.arange(len(features), device=features.device)
    unit = torch.nn.functional.normalize(features.float(), dim=-1)
    nearest = torch.cat(
        [
            (rows @ unit.T).scatter_(1, (start + torch.arange(len(rows), device=unit.device))[:, None], -torch.inf).amax(dim=1)
            for start, rows in zip(range(0, len(unit), ROWS), unit.split(ROWS), strict=True)
        ]
    )
    chosen = [nearest.argmin()]
    likeness = unit @ unit[chosen[0]]
    taken = torch.zeros(len(unit), dtype=torch.bool, device=unit.device)
    taken[chosen[0]] = True
    for _ in range(budget - 1):
        token = likeness.masked_fill(taken, torch.inf).argmin()
        taken[token] = True
        likeness = torch.maximum(likeness, unit @ unit[token])
        chosen.append(token)
    return torch.stack(chosen).sort().values


def keep_determinantal(features: Tensor, budget: int) -> Tensor:
    """Greedy MAP inference of the determinantal point process with kernel features @ features.T.

    Each step adds the token with the largest residual norm after projection on those chosen (Cholesky updates of Chen
    et al., arXiv 1709.05135); the kernel is never built.

    Args:
        features: (N, D); their norms are the tokens' weights.
        budget: In [1, N].

    Returns:
        (budget,) int64 ascending indices. Of equal residuals the earlier token is kept.
    """
    if budget >= len(features):
        return torch.arange(len(features), device=features.device)
    residual = features.float().square().sum(dim=-1)
    rows = features.new_zeros(budget, len(features), dtype=torch.float32)
    taken = torch.zeros(len(features), dtype=torch.bool, device=features.device)
    for step in range(budget):
        token = residual.masked_fill(taken, -torch.inf).argmax()
        taken[token] = True
        known = rows[:step]
        update = (features.float() @ features[token].float() - known.T @ known[:, token]) / residual[token].clamp_min(
            TINY
        ).sqrt()
        rows[step] = update
        residual = (residual - update.square()).clamp_min(0)
    return taken.nonzero()[:, 0]
