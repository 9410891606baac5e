"""What an evaluation on pictures of one's own says: rows with intervals, as table, Markdown, CSV and plot."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .baselines import FULL
from .own import Answered
from .summary import RESAMPLES, legend, relative, wilson

COLUMNS = (
    "method", "keep_ratio", "questions", "answered", "kept", "average", "structure", "score", "relative", "relative_low",
    "relative_high", "same", "same_low", "same_high", "kl", "kl_low", "kl_high", "ms_per_answer",
)  # fmt: skip


def rows(answered: Sequence[Answered]) -> list[dict[str, Any]]:
    """One row per method and keep ratio, the unpruned model first.

    Share of the visual tokens kept (after the last stage, and averaged over layers), line ends and tile markers per question;
    mean score over the questions whose answer is known, and relative to the unpruned model's; share of answers that are the
    unpruned model's; mean divergence from it; milliseconds per answer. Intervals are of 95 %: paired bootstrap over questions,
    of shares Wilson's. What cannot be said is None: a score without right answers, or relative to none that was right.
    """
    if not answered:
        return []
    table = []
    full = [one.outcomes[0] for one in answered]
    for place in range(len(answered[0].outcomes)):
        own = [one.outcomes[place] for one in answered]
        scores = np.array([o.score for o in own if o.score is not None])
        row: dict[str, Any] = {"method": own[0].method, "keep_ratio": own[0].keep_ratio}
        row |= {"questions": len(own), "answered": len(scores)}
        total = sum(o.total for o in own) or 1
        row |= {"kept": sum(o.kept for o in own) / total, "average": sum(o.average for o in own) / total}
        row["structure"] = sum(o.structure for o in own) / len(own)
        row["score"] = float(scores.mean()) if len(scores) else None
        base = np.array([o.score for o in full if o.score is not None])
        ratio = relative(scores, base) if len(scores) else (None,) * 3
        row["relative"], *row["relative_interval"] = (None if value is None or np.isnan(value) else value for value in ratio)
        row["same"], row["same_interval"] = float(np.mean([o.same for o in own])), list(wilson([o.same for o in own]))
        row["kl"], row["kl_interval"] = _mean([o.kl for o in own])
        row["ms_per_answer"] = 1000 * sum(o.seconds for o in own) / len(own)
        table.append(row)
    return table


def _mean(values: Sequence[float]) -> tuple[float, list[float]]:
    """A mean and its 95 % bootstrap interval."""
    mean = float(np.mean(values))
    if len(set(values)) < 2:
        return mean, [mean, mean]
    from scipy import stats  # of the extra `eval`, as matplotlib is

    found = stats.bootstrap(
        (np.array(values),), np.mean, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return mean, [float(found.low), float(found.high)]


def overview(table: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Lines of text, headings first. The columns of the score are left out where no answer is known."""
    judged, beside = any(row["answered"] for row in table), any(row["structure"] for row in table)
    heads = ["method", "keep", "kept", "average", *(["structure"] if beside else [])]
    heads += [*(["score", "score / full"] if judged else []), "same answer", "KL", "ms / answer"]
    return [heads, *(_line(row, judged, beside) for row in table)]


def _line(row: dict[str, Any], judged: bool, beside: bool) -> list[str]:
    line = [row["method"], f"{row['keep_ratio']:g}", f"{100 * row['kept']:.1f} %", f"{100 * row['average']:.1f} %"]
    line += [f"{row['structure']:.1f}"] if beside else []
    if judged:
        line += [f"{row['score']:.3f}", _percent(row["relative"], row["relative_interval"])]
    pruned = row["method"] != FULL
    line += [_percent(row["same"], row["same_interval"]) if pruned else ""]
    line += [f"{row['kl']:.4f}" if pruned else ""]
    return [*line, f"{row['ms_per_answer']:.1f}"]


def _percent(value: float | None, interval: Sequence[float]) -> str:
    return "" if value is None else f"{100 * value:.1f} % [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


def markdown(table: Sequence[dict[str, Any]], metric: str, bad: int) -> str:
    """The table, and what its columns are."""
    heads, *lines = overview(table)
    text = "\n".join("| " + " | ".join(line) + " |" for line in (heads, ["---"] * len(heads), *lines))
    judged = table[0]["answered"]
    about = [
        f"{table[0]['questions']} questions, {judged} of them with a right answer, {bad} rows left out as bad.",
        "`kept`: visual tokens after the last stage; `average`: averaged over the language model's layers; `structure`: line "
        "ends and tile markers beside them, per question, where a model has any.",
        f"`score`: mean of the metric {metric}; `score / full`: relative to the unpruned model's, with a 95 % interval (paired "
        "bootstrap over questions)."
        if judged
        else "",
        "`same answer`: share of greedy answers that are the unpruned model's, token by token (Wilson interval); `KL`: mean "
        "divergence of the next-token distributions from the unpruned model's, along its answer, nats per token; milliseconds "
        "per answer without the vision encoder, of the unpruned answer's length for every method.",
    ]
    return text + "\n\n" + "\n".join(part for part in about if part) + "\n"


def comma_separated(table: Sequence[dict[str, Any]]) -> str:
    """The numbers, one line per method and ratio; `COLUMNS` first."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in table:
        ends = {f"{name}_{end}": row[f"{name}_interval"][place] for name in ("relative", "same", "kl")
                for place, end in enumerate(("low", "high"))}  # fmt: skip
        writer.writerow(row | ends)
    return text.getvalue()


def plot(table: Sequence[dict[str, Any]], path: Path) -> None:
    """Score (where answers are known), same answers and divergence against visual tokens averaged over layers, as PNG."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    panels = [("same", "answers as the unpruned model's (%)", 100.0), ("kl", "KL from the unpruned model (nats / token)", 1.0)]
    if table[0]["relative"] is not None:
        panels.insert(0, ("relative", "score relative to all tokens (%)", 100.0))
    figure = Figure(figsize=(5.2 * len(panels), 4.4), layout="constrained")
    methods = [name for name in dict.fromkeys(row["method"] for row in table) if name != FULL]
    axes = figure.subplots(1, len(panels))
    for number, method in enumerate(methods):
        chosen = sorted((row for row in table if row["method"] == method), key=lambda row: row["average"])
        for axis, (name, label, scale) in zip(axes, panels, strict=True):
            middle = scale * np.array([row[name] for row in chosen])
            ends = scale * np.array([row[f"{name}_interval"] for row in chosen]).T
            color = colormaps["tab10" if len(methods) <= 10 else "tab20"](number % 20)
            style = {"color": color, "marker": "os^vDPX*"[number % 8], "label": legend(method)}
            axis.errorbar([100 * row["average"] for row in chosen], middle, abs(ends - middle), capsize=3, **style)
            axis.set(xlabel="visual tokens kept, average over layers (%)", ylabel=label)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize="small")
    figure.savefig(path, format="png", dpi=120)
