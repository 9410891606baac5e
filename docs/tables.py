"""The result tables of the README and the model card, made from docs/results: `make readme` writes them, a test checks them."""

import json
from functools import cache
from pathlib import Path

import numpy as np

from ptp.evaluation.store import load_cells
from ptp.evaluation.summary import mean_evidence, relative

RESULTS = Path(__file__).parent / "results"

ABLATION: dict[str, dict[str, str | tuple[str, str]]] = {
    "signals": {
        "all three (the default)": "pyramid",
        "without the region level": "pyramid:region=global",
        "without token saliency": "pyramid:alpha=1:region_alpha=0.25",
        "without the instruction": "pyramid:alpha=0",
        "region level alone": "random:region=thumbnail_attention",
        "token saliency alone": "pyramid:alpha=0:region=global",
        "instruction alone": "pyramid:alpha=1:region=global",
        "none (random tokens)": "random",
        "as published": "pyramid:alpha=0.5:region=cls_similarity:region_alpha=0",
    },
    "region": {
        "thumbnail_attention (the default)": "pyramid",
        "attention_mass": "pyramid:region=attention_mass",
        "cls_similarity, temperature 0.1": "pyramid:region=cls_similarity:temperature=0.1",
        "cls_similarity, temperature 0.3": "pyramid:region=cls_similarity",
        "cls_similarity, temperature 1": "pyramid:region=cls_similarity:temperature=1",
        "uniform": "pyramid:region=uniform",
        "region_alpha 0": "pyramid:region_alpha=0",
        "region_alpha 0.5": "pyramid:region_alpha=0.5",
        "region_alpha 1": "pyramid:region_alpha=1",
    },
    "tokens": {
        "alpha 0.25 (the default)": "pyramid",
        "alpha 0.1": "pyramid:alpha=0.1",
        "alpha 0.5": "pyramid:alpha=0.5",
        "alpha 0.75": "pyramid:alpha=0.75",
        "normalize tile": "pyramid:normalize=tile",
        "vision_layer -2": "pyramid:vision_layer=-2",
        "vision_layer -3": "pyramid:vision_layer=-3",
        "thumbnail_keep 0": "pyramid:thumbnail_keep=0",
        "thumbnail_keep 0.5": "pyramid:thumbnail_keep=0.5",
        "thumbnail_keep 1": "pyramid:thumbnail_keep=1",
    },
    "layers": {
        "prune_layer 2 (the default)": "pyramid",
        "prune_layer 2, without the instruction": "pyramid:alpha=0",
        "prune_layer 0": "pyramid:prune_layer=0",
        "prune_layer 0, without the instruction": ("pyramid:prune_layer=0:alpha=0", "pyramid:prune_layer=0"),
        "prune_layer 1": "pyramid:prune_layer=1",
        "prune_layer 1, without the instruction": ("pyramid:prune_layer=1:alpha=0", "pyramid:prune_layer=1"),
        "prune_layer 3": "pyramid:prune_layer=3",
        "prune_layer 3, without the instruction": ("pyramid:prune_layer=3:alpha=0", "pyramid:prune_layer=3"),
    },
}
"""What docs/results/ablation.md compares: title -> method, as `ptp eval` takes it (and what to compare it with)."""


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
    """Rows and per-picture shares of right answers of docs/results/ablation_full.json, by method and keep ratio."""
    data = json.loads((RESULTS / "ablation_full.json").read_text())
    right: dict[tuple[str, float], list[list[bool]]] = {}
    for cell in load_cells(data):
        right.setdefault((cell.method, cell.keep_ratio), []).append(cell.right)
    rows = {(row["method"], row["keep_ratio"]): row for row in data["rows"]}
    return rows, {key: np.mean(mine, axis=0) for key, mine in right.items()}


def ablation(group: str) -> str:
    """A line per variant of a group of `ABLATION`: accuracy against full tokens and against the default.

    Per keep ratio: mean accuracy relative to all tokens; in brackets the difference to the default in percent of it, with
    its 95 % interval (paired bootstrap over pictures); the share of the evidence's tokens kept.
    """
    rows, right = _ablation()
    ratios = sorted({keep for _, keep in rows if 0 < keep < 1}, reverse=True)
    lines = []
    for title, (method, base) in _pairs(group).items():
        line = [title, f"`{method}`"]
        for keep in ratios:
            text = f"{100 * rows[method, keep]['relative']:.1f} %"
            if method != base:
                change = (100 * (value - 1) for value in relative(right[method, keep], right[base, keep]))
                text += " ({:+.1f} [{:+.1f}, {:+.1f}])".format(*change)
            line.append(f"{text}, {mean_evidence(rows[method, keep]):.2f}")
        lines.append(line)
    return _markdown(["", "`ptp eval --methods`", *(f"{100 * keep:g} % kept" for keep in ratios)], lines)


def ablation_command() -> str:
    """The command that measures the ablation."""
    methods = ",".join(dict.fromkeys(method for group in ABLATION for method, _ in _pairs(group).values()))
    settings = "--split tune --samples 200 --keep 0.5,0.25,0.1 --out docs/results/ablation_full.json"
    return f"```\n.venv/bin/ptp eval {settings} \\\n    --methods {methods}\n```"


def _pairs(group: str) -> dict[str, tuple[str, str]]:
    """Title -> method and what it is compared with."""
    return {title: (entry, "pyramid") if isinstance(entry, str) else entry for title, entry in ABLATION[group].items()}
