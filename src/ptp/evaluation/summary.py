"""From single answers to a table with intervals."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .accuracy import Cell

RESAMPLES = 2000


def interval(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of one value per picture."""
    rng = np.random.default_rng(seed)
    means = values[rng.integers(0, len(values), (RESAMPLES, len(values)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def relative(right: np.ndarray, full: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """Accuracy relative to full tokens and its 95 % interval, resampling pictures (paired).

    Args:
        right, full: One value per picture.
    """
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, len(right), (RESAMPLES, len(right)))
    ratios = right[draws].mean(axis=1) / np.maximum(full[draws].mean(axis=1), 1e-9)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(right.mean() / max(full.mean(), 1e-9)), float(low), float(high)


def rows(cells: Sequence[Cell], tasks: Sequence[str]) -> list[dict[str, Any]]:
    """One row per variant and ratio: accuracy and evidence per task, their mean relative to full with its interval."""
    by_key = {(cell.task, cell.variant, cell.keep_ratio): cell for cell in cells}
    full = np.mean([by_key[task, "full", 1.0].right for task in tasks], axis=0)
    table = []
    for variant, keep in dict.fromkeys((cell.variant, cell.keep_ratio) for cell in cells):
        mine = {task: by_key[task, variant, keep] for task in tasks}
        per_picture = np.mean([cell.right for cell in mine.values()], axis=0)
        ratio, low, high = relative(per_picture, full)
        first = next(iter(mine.values()))
        table.append(
            {
                "method": variant,
                "keep_ratio": keep,
                "kept": first.kept / first.total,
                "accuracy": {task: cell.accuracy for task, cell in mine.items()},
                "interval": {task: interval(np.array(cell.right, float)) for task, cell in mine.items()},
                "evidence": {task: float(np.mean(cell.evidence)) for task, cell in mine.items()},
                "relative": ratio,
                "relative_interval": (low, high),
            }
        )
    return table


def markdown(table: Sequence[dict[str, Any]], tasks: Sequence[str]) -> str:
    """The table for docs/results."""
    head = ["method", "keep", *tasks, "mean relative to full", *(f"evidence kept, {task}" for task in tasks)]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in table:
        scores = [
            f"{row['accuracy'][task]:.3f} [{row['interval'][task][0]:.3f}, {row['interval'][task][1]:.3f}]" for task in tasks
        ]
        low, high = row["relative_interval"]
        total = f"{100 * row['relative']:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
        evidence = [f"{row['evidence'][task]:.2f}" for task in tasks]
        lines.append("| " + " | ".join([row["method"], f"{row['keep_ratio']:g}", *scores, total, *evidence]) + " |")
    return "\n".join(lines) + "\n"
