"""Whether what a method decided is what it may decide: a wrong token kept is a wrong answer for somebody."""

from typing import Any

import torch
from torch import Tensor

from ..selection import Selection, total_budget
from .picture import Picture


def check_selection(selection: Any, picture: Picture, keep_ratio: float, method: Any) -> Selection:
    """What `method` chose for one picture.

    Args:
        keep_ratio: The stage's.

    Raises:
        ValueError: it is no selection of the picture's tokens; the message has the rule, the value and the method's name.
    """
    problem = _problem(selection, picture, keep_ratio)
    if problem:
        raise ValueError(f"{type(method).__name__}.select: {problem}")
    return selection


def _problem(selection: Any, picture: Picture, keep_ratio: float) -> str | None:
    if not isinstance(selection, Selection):
        return f"must return a Selection, got {type(selection).__name__}. Return Selection(kept, budgets)."
    kept = selection.kept
    if not isinstance(kept, Tensor) or kept.dtype != torch.int64 or kept.dim() != 1:
        found = f"{kept.dtype} {tuple(kept.shape)}" if isinstance(kept, Tensor) else type(kept).__name__
        return (
            f"kept must be (K,) int64 indices into the picture's visual tokens, got {found}. Of a mask, mask.nonzero()[:, 0]."
        )
    kept, alive = kept.cpu(), picture.alive.cpu()
    wanted = min(total_budget(keep_ratio, picture.tokens), len(alive))
    if len(kept) != wanted:
        return (
            f"kept must be {wanted} tokens (the stage's keep_ratio {keep_ratio:g} of {picture.tokens}), got {len(kept)}. "
            "ptp.selection.total_budget tells how many."
        )
    if bool((kept.diff() <= 0).any()):
        return f"kept must ascend and hold no index twice, got {_shown(kept)}. Sort it: kept.sort().values."
    if not bool(torch.isin(kept, alive, assume_unique=True).all()):
        left = f"{len(alive)} of {picture.tokens} tokens"
        return f"kept must be among picture.alive (here {left}), got {_shown(kept)}. Choose from it."
    counts = picture.count_per_tile(kept)
    if list(selection.budgets) != counts:
        return (
            f"budgets must be the tokens kept in each tile, {counts}, got {list(selection.budgets)}. "
            "picture.count_per_tile(kept) counts them."
        )
    return None if selection.merged is None else _merge_problem(selection.merged, kept, picture)


def _merge_problem(merged: Any, kept: Tensor, picture: Picture) -> str | None:
    if not isinstance(merged, Tensor) or merged.dtype != torch.int64 or merged.shape != (picture.tokens,):
        found = f"{merged.dtype} {tuple(merged.shape)}" if isinstance(merged, Tensor) else type(merged).__name__
        return f"merged must be ({picture.tokens},) int64, the kept token each one goes into or -1, got {found}."
    merged = merged.cpu()
    own = merged[kept]
    if not torch.equal(own, kept):
        wrong = int((own != kept).nonzero()[0, 0])
        return f"a kept token must go into itself, got merged[{int(kept[wrong])}] = {int(own[wrong])}. Set merged[kept] = kept."
    targets = merged[merged != -1]
    if not bool(torch.isin(targets, kept).all()):
        return f"merged must point to kept tokens or be -1, got {_shown(targets[~torch.isin(targets, kept)])}."
    return None


def _shown(numbers: Tensor) -> str:
    text = ", ".join(map(str, numbers[:8].tolist()))
    return f"[{text}, ...]" if len(numbers) > 8 else f"[{text}]"
