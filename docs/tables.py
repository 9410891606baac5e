"""The result tables of the README and the model card, made from docs/results: `make readme` writes them, a test checks them."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np

from ptp.evaluation.store import load_cells
from ptp.evaluation.summary import mean_evidence, relative

RESULTS = Path(__file__).parent / "results"


def _markdown(heads: list[str], lines: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in (heads, ["---"] * len(heads), *lines))


def accuracy() -> str:
    """Mean accuracy relative to all tokens, a line per method, a column per keep ratio."""
    rows = json.loads((RESULTS / "accuracy.json").read_text())["rows"]
    ratios = sorted({row["keep_ratio"] for row in rows if 0 < row["keep_ratio"] < 1}, reverse=True)
    cells = {(row["method"], row["keep_ratio"]): row for row in rows}
    lines = []
    for method in dict.fromkeys(row["method"] for row in rows if 0 < row["keep_ratio"] < 1):
        line = [method]
        for keep in ratios:
            row = cells[method, keep]
            low, high = row["relative_interval"]
            line.append(f"{100 * row['relative']:.1f} % [{100 * low:.1f}, {100 * high:.1f}]")
        lines.append(line)
    return _markdown(["", *(f"{100 * keep:g} % kept" for keep in ratios)], lines)


def full_accuracy() -> str:
    """Accuracy of the embedded model with all tokens, and what can be guessed, per task."""
    rows = json.loads((RESULTS / "accuracy.json").read_text())["rows"]
    names = {"full": "all tokens", "blank": "a blank picture", "majority": "the most frequent answer"}
    mine = {row["method"]: row["accuracy"] for row in rows if row["method"] in names}
    tasks = list(mine["full"])
    return _markdown(["", *tasks], [[names[method], *(f"{mine[method][task]:.3f}" for task in tasks)] for method in names])


def prefill() -> str:
    """Prefill times of the 100 M model: full, pruned and the limit."""
    lines = []
    for row in json.loads((RESULTS / "prefill_100m.json").read_text())["rows"]:
        full, ours, limit = (row[name]["median"] for name in ("full", "ours", "limit"))
        lines.append(
            [
                str(row["prune_layer"]), f"{100 * row['keep_ratio']:g} %", f"{full:.2f} s", f"{ours:.2f} s",
                f"{full / (ours + row['signals']):.1f}x", f"{limit:.2f} s",
                f"{row['ratio']:.2f}", f"{row['ratio_to_bound']:.2f}",
            ]
        )  # fmt: skip
    heads = ["prune_layer", "kept", "full", "ptp", "speed-up", "limit", "ptp / limit", "ptp / (K full layers + rest)"]
    return _markdown(heads, lines)


@cache
def _ablation() -> tuple[dict, dict]:
    """Rows and per-picture shares of right answers of docs/results/ablation.json, by method and keep ratio."""
    data = json.loads((RESULTS / "ablation.json").read_text())
    right: dict[tuple[str, float], list[list[bool]]] = {}
    for cell in load_cells(data):
        right.setdefault((cell.method, cell.keep_ratio), []).append(cell.right)
    rows = {(row["method"], row["keep_ratio"]): row for row in data["rows"]}
    return rows, {key: np.mean(mine, axis=0) for key, mine in right.items()}


def ablation(variants: Mapping[str, str], default: str = "pyramid") -> str:
    """A line per variant (title -> method as `ptp eval` takes it): accuracy against full tokens and against the default.

    Per keep ratio: mean accuracy relative to all tokens; in brackets the difference to the default in percent of it, with
    its 95 % interval (paired bootstrap over pictures); the share of the evidence's tokens kept.
    """
    rows, right = _ablation()
    ratios = sorted({keep for _, keep in rows if 0 < keep < 1}, reverse=True)
    lines = []
    for title, method in variants.items():
        line = [title, f"`{method}`"]
        for keep in ratios:
            text = f"{100 * rows[method, keep]['relative']:.1f} %"
            if method != default:
                change = (100 * (value - 1) for value in relative(right[method, keep], right[default, keep]))
                text += " ({:+.1f} [{:+.1f}, {:+.1f}])".format(*change)
            line.append(f"{text} {mean_evidence(rows[method, keep]):.2f}")
        lines.append(line)
    return _markdown(["", "`ptp eval --methods`", *(f"{100 * keep:g} % kept" for keep in ratios)], lines)
