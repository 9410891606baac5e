"""The result tables of the README and the model card, made from docs/results: `make readme` writes them, a test checks them."""

import json
from pathlib import Path

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
