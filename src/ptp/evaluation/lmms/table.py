"""What a suite says: a line for every benchmark, method and keep ratio."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..baselines import FULL
from .suites import PUBLISHED, Benchmark

HEADS = ["benchmark", "method", "keep", "paper", "unpruned", "pruned", "difference", "relative", "tokens", "ms / question"]


def rows(runs: Sequence[dict[str, Any]], suite: Sequence[Benchmark]) -> list[dict[str, Any]]:
    """Every pruned run against the unpruned one of its benchmark, and the mean of each method's relative scores.

    Args:
        runs: What `run.Bench.run` found, with "benchmark", "method" and "keep_ratio".

    Returns:
        Rows with "benchmark", "method", "keep_ratio", "paper" (None where it is not known) and its "source", "unpruned",
        "pruned", "difference", "relative" (None where the unpruned score is 0), "questions", "visual_tokens" (before, after,
        averaged over layers; per question) and "ms_per_question" (unpruned, pruned; encoding included).
    """
    full = {run["benchmark"]: run for run in runs if run["method"] == FULL}
    table = []
    for one in suite:
        base = full.get(one.name)
        for run in runs:
            if base is None or run["benchmark"] != one.name or run["method"] == FULL:
                continue
            spent, count = run["spent"], max(run["spent"]["questions"], 1)
            paper, source = PUBLISHED.get((one.name, run["method"], run["keep_ratio"]), (None, None))
            row: dict[str, Any] = {"benchmark": one.name, "method": run["method"], "keep_ratio": run["keep_ratio"]}
            row |= {"paper": paper, "source": source, "unpruned": base["score"], "pruned": run["score"]}
            row["difference"] = run["score"] - base["score"]
            row["relative"] = run["score"] / base["score"] if base["score"] else None
            row["questions"] = spent["questions"]
            row["visual_tokens"] = [spent[name] / count for name in ("before", "after", "average")]
            row["ms_per_question"] = [_milliseconds(base), _milliseconds(run)]
            table.append(row)
    return table


def means(table: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The mean relative score of each method and keep ratio over the benchmarks that have one."""
    found = []
    for method, keep in dict.fromkeys((row["method"], row["keep_ratio"]) for row in table):
        own = [row["relative"] for row in table if (row["method"], row["keep_ratio"]) == (method, keep)]
        known = [value for value in own if value is not None]
        mean = float(np.mean(known)) if known else None
        found.append({"method": method, "keep_ratio": keep, "benchmarks": len(known), "relative": mean})
    return found


def _milliseconds(run: dict[str, Any]) -> float:
    return 1000 * run["spent"]["seconds"] / max(run["spent"]["questions"], 1)


def overview(table: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Lines of text, headings first; the means last."""
    lines = [HEADS]
    for row in table:
        before, after, average = row["visual_tokens"]
        beside = f" (average {average:,.0f})" if abs(average - after) >= 0.5 else ""
        lines.append(
            [
                row["benchmark"],
                row["method"],
                f"{row['keep_ratio']:g}",
                "" if row["paper"] is None else f"{row['paper']:g}",
                f"{row['unpruned']:.4g}",
                f"{row['pruned']:.4g}",
                f"{row['difference']:+.4g}",
                _percent(row["relative"]),
                f"{before:,.0f} -> {after:,.0f}{beside}",
                " -> ".join(f"{value:,.0f}" for value in row["ms_per_question"]),
            ]
        )
    for mean in means(table):
        name = f"mean of {mean['benchmarks']}"
        lines.append([name, mean["method"], f"{mean['keep_ratio']:g}", "", "", "", "", _percent(mean["relative"]), "", ""])
    return lines


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def markdown(table: Sequence[dict[str, Any]], suite: Sequence[Benchmark], left_out: Sequence[str]) -> str:
    """The table, what its columns are, and what is not in it."""
    heads, *lines = overview(table)
    text = "\n".join("| " + " | ".join(line) + " |" for line in (heads, ["---"] * len(heads), *lines))
    notes = [f"- {one.name} (`{one.task}`): {one.note}." for one in suite if one.note]
    about = [
        "Scores by lmms-eval, in its own scales; `paper`: the paper's number, where it is known; `relative`: pruned over "
        "unpruned; `tokens`: visual tokens per question before and after (the average is over the language model's layers); "
        "milliseconds per question with the encoding, unpruned and pruned.",
        "\n".join([*notes, *(f"- {reason}" for reason in left_out)]),
    ]
    return text + "\n\n" + "\n\n".join(part for part in about if part) + "\n"
