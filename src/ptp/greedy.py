"""Greedy searches: subsets of tokens chosen one by one, each in view of those before."""

import torch
from torch import Tensor

ROWS = 1024
"""Rows of a similarity matrix held at a time."""
TINY = 1e-12


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
