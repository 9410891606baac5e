"""From single answers to rows with intervals, and from rows to tables and plots."""

import csv
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .accuracy import Cell
from .baselines import BLANK, FULL

RESAMPLES = 2000
MAJORITY = "majority"
"""The baseline that always gives a task's most frequent answer."""


def wilson(right: Sequence[bool]) -> tuple[float, float]:
    """95 % Wilson interval of an accuracy."""
    from scipy import stats  # of the extra `eval`, as matplotlib is

    interval = stats.binomtest(int(sum(right)), len(right)).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def relative(right: np.ndarray, full: np.ndarray) -> tuple[float, float, float]:
    """Accuracy relative to full tokens and its 95 % interval, by a paired bootstrap over pictures.

    Args:
        right, full: One value per picture: its share of right answers.

    Returns:
        (ratio, low, high); NaN where full tokens got nothing right.
    """

    def ratio(a: np.ndarray, b: np.ndarray, axis: int = -1) -> np.ndarray:
        return a.mean(axis=axis) / b.mean(axis=axis)

    if not full.any():
        return (float("nan"),) * 3
    if len(right) < 2 or (right == full).all():  # nothing to resample
        return (float(ratio(right, full)),) * 3
    from scipy import stats

    with np.errstate(divide="ignore", invalid="ignore"):  # of a few pictures, a resample may hold none that full got right
        found = stats.bootstrap(
            (right, full),
            ratio,
            paired=True,
            vectorized=True,
            n_resamples=RESAMPLES,
            method="percentile",
            rng=np.random.default_rng(0),
        )
    return float(ratio(right, full)), float(found.confidence_interval.low), float(found.confidence_interval.high)


def rows(cells: Sequence[Cell], tasks: Sequence[str]) -> list[dict[str, Any]]:
    """One row per method and ratio whose cells are all there.

    Accuracy (with interval) and evidence kept per task, their mean relative to full (with paired interval), the share of
    visual tokens kept, after the last stage and averaged over layers, line ends and tile markers left per picture, and seconds
    per answer. The row "majority" says how
    far always giving the most frequent answer gets, "blank" what the model guesses without seeing the picture.
    """
    by_key = {cell.key: cell for cell in cells}
    if any((task, FULL, 1.0) not in by_key for task in tasks):
        return []
    full = [by_key[task, FULL, 1.0] for task in tasks]
    base = np.mean([cell.right for cell in full], axis=0)
    majority = [Cell(c.task, MAJORITY, 0.0, _majority(c.answers), c.answers, total=1) for c in full]
    by_key |= {cell.key: cell for cell in majority}
    table = []
    for method, keep in dict.fromkeys((cell.method, cell.keep_ratio) for cell in by_key.values()):
        chosen = [by_key[task, method, keep] for task in tasks if (task, method, keep) in by_key]
        if len(chosen) < len(tasks):
            continue
        ratio, low, high = relative(np.mean([cell.right for cell in chosen], axis=0), base)
        table.append(
            {
                "method": method,
                "keep_ratio": keep,
                "kept": sum(cell.kept for cell in chosen) / sum(cell.total for cell in chosen),
                "average": sum(cell.average for cell in chosen) / sum(cell.total for cell in chosen),
                "structure": sum(cell.structure for cell in chosen) / sum(len(cell.right) for cell in chosen),
                "accuracy": {cell.task: float(np.mean(cell.right)) for cell in chosen},
                "interval": {cell.task: wilson(cell.right) for cell in chosen},
                "mean": float(np.mean([cell.right for cell in chosen])),
                "relative": ratio,
                "relative_interval": (low, high),
                "evidence": {cell.task: cell.evidence for cell in chosen},
                "seconds_per_answer": sum(cell.seconds for cell in chosen) / sum(len(cell.right) for cell in chosen),
            }
        )
    return table


def _majority(answers: Sequence[str]) -> list[bool]:
    frequent = Counter(answers).most_common(1)[0][0]
    return [answer == frequent for answer in answers]


def mean_evidence(row: dict[str, Any]) -> float | None:
    """Share of the evidence kept, averaged over the tasks that have any."""
    shares = [share for share in row["evidence"].values() if share is not None]
    return float(np.mean(shares)) if shares else None


def overview(table: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Lines of text, headings first: tokens kept, mean accuracy, evidence kept, time."""
    beside = any(row["structure"] for row in table)  # line ends and tile markers: some families have none
    extra = ["structure"] if beside else []
    lines = [["method", "keep", "kept", "average", *extra, "mean / full", "evidence kept", "ms / answer"]]
    for row in table:
        low, high = row["relative_interval"]
        evidence = mean_evidence(row)
        lines.append(
            [
                *_name(row),
                f"{100 * row['kept']:.1f} %" if row["kept"] else "",
                f"{100 * row['average']:.1f} %" if row["average"] else "",
                *([f"{row['structure']:.1f}" if row["structure"] else ""] if beside else []),
                f"{100 * row['relative']:.1f} % [{100 * low:.1f}, {100 * high:.1f}]",
                "" if evidence is None else f"{evidence:.2f}",
                f"{1000 * row['seconds_per_answer']:.1f}" if row["seconds_per_answer"] else "",
            ]
        )
    return lines


def per_task(table: Sequence[dict[str, Any]], tasks: Sequence[str], name: str = "accuracy") -> list[list[str]]:
    """Lines of text, headings first: accuracy (or "evidence", or its "interval") task by task."""

    def text(value: Any) -> str:
        return "" if value is None else f"[{value[0]:.3f}, {value[1]:.3f}]" if name == "interval" else f"{value:.3f}"

    return [["method", "keep", *tasks], *([*_name(row), *(text(row[name][task]) for task in tasks)] for row in table)]


def _name(row: dict[str, Any]) -> list[str]:
    return [row["method"], f"{row['keep_ratio']:g}" if row["keep_ratio"] else ""]


def markdown(table: Sequence[dict[str, Any]], tasks: Sequence[str]) -> str:
    """All tables, for docs/results."""

    def lines(cells: list[list[str]]) -> str:
        heads, *rest = cells
        return "\n".join("| " + " | ".join(line) + " |" for line in (heads, ["---"] * len(heads), *rest))

    pruned = [row for row in table if mean_evidence(row) is not None]
    return "\n\n".join(
        [
            lines(overview(table)),
            "`kept`: visual tokens after the last stage; `average`: averaged over the language model's layers; "
            "`structure`: line ends and tile markers beside them, per picture, where a model has any. Mean accuracy "
            "relative to full tokens with a 95 % interval (paired bootstrap over pictures); share of the evidence's tokens "
            "kept (tiles only); milliseconds per answer without the vision encoder. `blank`: all tokens of a blank picture; "
            "`majority`: always the most frequent answer.",
            "Accuracy per task:",
            lines(per_task(table, tasks)),
            "95 % Wilson intervals of the accuracies:",
            lines(per_task(table, tasks, "interval")),
            "Share of the evidence's visual tokens kept, per task:",
            lines(per_task(pruned, tasks, "evidence")) + "\n",
        ]
    )


def comma_separated(table: Sequence[dict[str, Any]], tasks: Sequence[str]) -> str:
    """The numbers, one line per method and ratio."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    per_task = [f"{kind}_{task}" for kind in ("accuracy", "low", "high", "evidence") for task in tasks]
    writer.writerow(
        [
            "method",
            "keep_ratio",
            "kept",
            "average",
            "mean",
            "relative",
            "relative_low",
            "relative_high",
            "seconds_per_answer",
            *per_task,
        ]
    )
    for row in table:
        values = [row[name] for name in ("method", "keep_ratio", "kept", "average", "mean", "relative")]
        values += [*row["relative_interval"], row["seconds_per_answer"]]
        values += [row["accuracy"][task] for task in tasks] + [row["interval"][task][0] for task in tasks]
        values += [row["interval"][task][1] for task in tasks] + [row["evidence"][task] for task in tasks]
        writer.writerow(values)
    return text.getvalue()


def legend(name: str) -> str:
    """A name short enough for the legend of a plot: a long one gets a line per setting."""
    return name if len(name) <= 24 else name.replace(":", "\n  ")


def plot(table: Sequence[dict[str, Any]], path: Path) -> None:
    """Accuracy and evidence kept against visual tokens kept (averaged over layers), one line per method, as PNG."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.4), layout="constrained")
    accuracy, evidence = figure.subplots(1, 2)
    methods = [name for name in dict.fromkeys(row["method"] for row in table) if name not in (FULL, BLANK, MAJORITY)]
    for number, method in enumerate(methods):
        chosen = sorted((row for row in table if row["method"] == method), key=lambda row: row["average"])
        kept = [100 * row["average"] for row in chosen]
        middle = np.array([100 * row["relative"] for row in chosen])
        ends = 100 * np.array([row["relative_interval"] for row in chosen]).T
        color = colormaps["tab10" if len(methods) <= 10 else "tab20"](number)
        style = {"color": color, "marker": "os^vDPX*"[number % 8], "label": legend(method)}
        accuracy.errorbar(kept, middle, abs(ends - middle), capsize=3, **style)
        recall = [mean_evidence(row) for row in chosen]
        if None not in recall:
            evidence.plot(kept, [100 * share for share in recall if share is not None], **style)
    accuracy.axhline(100, color="gray", linewidth=0.8)
    for name, line, place, side in ((MAJORITY, "--", 0.01, "left"), (BLANK, ":", 0.99, "right")):
        for height in (100 * row["relative"] for row in table if row["method"] == name):
            accuracy.axhline(height, color="gray", linestyle=line, linewidth=0.8)
            accuracy.annotate(name, (place, height), xycoords=("axes fraction", "data"), ha=side, va="bottom")
    limits = (0, 100)
    evidence.plot(limits, limits, color="gray", linewidth=0.8)
    label = "visual tokens kept, average over layers (%)"
    accuracy.set(xlabel=label, ylabel="mean accuracy relative to all tokens (%)")
    evidence.set(xlabel=label, ylabel="evidence's tokens kept (%)", xlim=limits, ylim=limits)
    figure.legend(*accuracy.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize="small")
    figure.savefig(path, format="png", dpi=120)
