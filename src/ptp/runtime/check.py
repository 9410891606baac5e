"""Whether what a method decided is what it may decide: a wrong token kept is a wrong answer for somebody."""

from typing import Any

import torch
from torch import Tensor

from ..selection import Selection
from .picture import Picture


def check_selection(selection: Any, picture: Picture, budget: int, method: Any) -> Tensor:
    """The tokens that `method` chose for one picture, (K,) int64 on the host: the one copy of them that a GPU waits for.

    Args:
        budget: Tokens that the stage keeps; fewer where earlier stages left fewer.

    Raises:
        ValueError: it is no selection of the picture's tokens; the message has the rule, the value and the method's name.
    """
    if not isinstance(selection, Selection):
        found = type(selection).__name__
        raise ValueError(
            f"{type(method).__name__}.select: must return a Selection, got {found}. Return Selection(kept, budgets)."
        )
    kept = selection.kept.cpu() if isinstance(selection.kept, Tensor) else selection.kept
    problem = _problem(selection, kept, picture, budget)
    if problem:
        raise ValueError(f"{type(method).__name__}.select: {problem}")
    return kept


def _problem(selection: Selection, kept: Any, picture: Picture, budget: int) -> str | None:
    if not isinstance(kept, Tensor) or kept.dtype != torch.int64 or kept.dim() != 1:
        found = f"{kept.dtype} {tuple(kept.shape)}" if isinstance(kept, Tensor) else type(kept).__name__
        return (
            f"kept must be (K,) int64 indices into the picture's visual tokens, got {found}. Of a mask, mask.nonzero()[:, 0]."
        )
    alive = picture.alive
    wanted = min(budget, len(alive))
    if len(kept) != wanted:
        return (
            f"kept must be {wanted} tokens (the stage's budget of {picture.tokens}), got {len(kept)}. "
            "stage.budget(picture.tokens) tells how many."
        )
    if bool((kept.diff() <= 0).any()):
        return f"kept must ascend and hold no index twice, got {_shown(kept)}. Sort it: kept.sort().values."
    inside = not len(kept) or (int(kept[0]) >= 0 and int(kept[-1]) < picture.tokens)
    if inside and len(alive) < picture.tokens:  # else all of them are alive
        inside = bool(torch.isin(kept, alive.cpu(), assume_unique=True).all())
    if not inside:
        left = f"{len(alive)} of {picture.tokens} tokens"
        return f"kept must be among picture.alive (here {left}), got {_shown(kept)}. Choose from it."
    counts = picture.count_per_tile(kept)
    if list(selection.budgets) != counts:
        return (
            f"budgets must be the tokens kept in each tile, {counts}, got {list(selection.budgets)}. "
            "picture.count_per_tile(kept) counts them."
        )
    return None if selection.mix is None else _mix_problem(selection.mix, len(kept), picture)


def _mix_problem(mix: Any, kept: int, picture: Picture) -> str | None:
    shape = (kept, picture.tokens)
    if not isinstance(mix, Tensor) or not mix.is_floating_point() or mix.shape != shape:
        found = f"{mix.dtype} {tuple(mix.shape)}" if isinstance(mix, Tensor) else type(mix).__name__
        return (
            f"mix must be {shape} weights, a row for each kept token, got {found}. ptp.selection.averages makes one of groups."
        )
    weighs = mix != 0
    if not bool(mix.isfinite().all()) or not bool(weighs.any(dim=1).all()):
        return "each row of mix must be finite and have a weight that is not 0: its kept token would be lost. Give it its own."
    gone = torch.ones(picture.tokens, dtype=torch.bool, device=mix.device)
    gone[picture.alive.to(mix.device)] = False
    if bool((weighs & gone).any()):
        return "mix must weigh tokens of picture.alive only, got a weight for one that left before. Set it to 0."
    return None


def _shown(numbers: Tensor) -> str:
    text = ", ".join(map(str, numbers[:8].tolist()))
    return f"[{text}, ...]" if len(numbers) > 8 else f"[{text}]"
