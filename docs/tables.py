"""The result tables of the README and the model card, made from docs/results: `make readme` writes them, a test checks them."""

import json
import math
import textwrap
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ptp.bench.first_token import Measured
from ptp.bench.presets import FAMILY_PRESETS
from ptp.evaluation.results_file import load_cells
from ptp.evaluation.summary import mean_evidence, relative

RESULTS = Path(__file__).parent / "results"

PUBLISHED = "pyramid:relevance=attention:region=cls_similarity:region_alpha=0:scope=tile:diversity=0"
ABLATION: dict[str, dict[str, str]] = {
    "signals": {
        "all of them (the default)": "pyramid",
        "without the region level": "pyramid:region=uniform:region_alpha=0",
        "without token saliency": "pyramid:alpha=1:region_alpha=0.5",
        "without the instruction": "pyramid:alpha=0",
        "without novelty": "pyramid:diversity=0",
        "region level alone": "random:region=thumbnail_attention",
        "token saliency alone": "pyramid:alpha=0:region=uniform:diversity=0",
        "instruction alone": "pyramid:alpha=1:region=uniform:region_alpha=0:diversity=0",
        "none (random tokens)": "random",
        "as published, at layer 0": PUBLISHED,
    },
    "instruction": {
        "similarity, alpha 0.5 (the default)": "pyramid",
        "similarity, alpha 0.25": "pyramid:alpha=0.25",
        "similarity, alpha 0.75": "pyramid:alpha=0.75",
        "attention": "pyramid:relevance=attention",
        "attention, alpha 0.25": "pyramid:relevance=attention:alpha=0.25",
        "both": "pyramid:relevance=both",
        "both, alpha 0.75": "pyramid:relevance=both:alpha=0.75",
    },
    "region": {
        "thumbnail_attention (the default)": "pyramid",
        "attention_mass": "pyramid:region=attention_mass",
        "cls_similarity": "pyramid:region=cls_similarity",
        "uniform": "pyramid:region=uniform",
        "region_alpha 0": "pyramid:region_alpha=0",
        "region_alpha 0.75": "pyramid:region_alpha=0.75",
        "region_alpha 1": "pyramid:region_alpha=1",
        "budgets of tiles": "pyramid:scope=tile",
        "budgets of tiles, none for the thumbnail": "pyramid:scope=tile:thumbnail_keep=0",
        "thumbnail_keep 0": "pyramid:thumbnail_keep=0",
    },
    "tokens": {
        "diversity 0.5 (the default)": "pyramid",
        "diversity 0": "pyramid:diversity=0",
        "diversity 0.25": "pyramid:diversity=0.25",
        "diversity 1": "pyramid:diversity=1",
        "normalize tile": "pyramid:normalize=tile",
        "vision_layer -2": "pyramid:vision_layer=-2",
        "vision_layer -3": "pyramid:vision_layer=-3",
    },
    "layers": {
        "prune_layer 0 (the default)": "pyramid",
        "prune_layer 1": "pyramid:prune_layer=1",
        "prune_layer 2": "pyramid:prune_layer=2",
        "prune_layer 1, similarity": "pyramid:prune_layer=1:relevance=similarity",
        "prune_layer 2, similarity": "pyramid:prune_layer=2:relevance=similarity",
        "prune_layer 2, both": "pyramid:prune_layer=2:relevance=both",
        "prune_layer 2, as published": PUBLISHED + ":prune_layer=2",
        "prune_layer 3": "pyramid:prune_layer=3",
    },
}
"""What docs/results/ablation.md compares: title -> method, as `ptp eval` takes it."""


def ablation_methods() -> str:
    """All of them, for `ptp eval --methods`."""
    return ",".join(dict.fromkeys(method for group in ABLATION.values() for method in group.values()))


def _rows(name: str) -> list[dict[str, Any]]:
    return json.loads((RESULTS / f"{name}.json").read_text())["rows"]


def first_token(name: str) -> str:
    """Time to the first token of each picture: without what is saved in the encoder, with it, and of the next question."""
    lines = []
    for kind, one in json.loads((RESULTS / f"{name}.json").read_text())["pictures"].items():
        found = Measured(**one)
        times = [float(np.median(each)) for each in (found.without, found.with_all, found.again, found.rest)]
        lines.append(
            [
                kind.replace("_", " "), f"{found.encoded} of {found.units}", f"{times[0]:.2f} s", f"{times[1]:.2f} s",
                f"{found.speed_up:.2f}x", f"{times[2]:.2f} s", f"{times[3]:.2f} s", f"{found.over_rest:.2f}",
                str(len(found.rest)),
            ]
        )  # fmt: skip
    heads = ["picture", "tiles encoded", "without", "with", "speed-up", "next question", "its selection and prefill", "ratio"]
    return _markdown([*heads, "rounds"], lines)


def command(name: str) -> str:
    """The command that measured `docs/results/NAME.json`, as it was given."""
    text = json.loads((RESULTS / f"{name}.json").read_text())["about"]["command"]
    lines = textwrap.wrap(f".venv/bin/{text}", 116, break_long_words=False, break_on_hyphens=False)
    return "```\n" + " \\\n    ".join(lines) + "\n```"


def _markdown(heads: list[str], lines: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in (heads, ["---"] * len(heads), *lines))


def methods() -> str:
    """Mean accuracy relative to all tokens, a line per method, a column per average of visual tokens; best at 25 % first."""
    rows = [row for row in _rows("methods") if 0 < row["keep_ratio"] < 1]
    ratios = sorted({row["keep_ratio"] for row in rows}, reverse=True)
    cells = {(row["method"], row["keep_ratio"]): row for row in rows}
    lines: dict[str, list[str]] = {}
    for method in dict.fromkeys(row["method"] for row in rows):
        line = ["`pyramid`, as published" if method == PUBLISHED else f"`{method}`"]
        for keep in ratios:
            row = cells.get((method, keep))
            text = "{:.1f} % [{:.1f}, {:.1f}]"
            line.append(
                text.format(*(100 * x for x in (row["relative"], *row["relative_interval"]))) if row else "out of reach"
            )
        lines[method] = line
    middle = ratios[len(ratios) // 2]
    best = sorted(lines, key=lambda name: -cells[name, middle]["relative"] if (name, middle) in cells else 0)
    return _markdown(["", *(f"{100 * keep:g} % of the tokens" for keep in ratios)], [lines[name] for name in best])


def full_accuracy() -> str:
    """Accuracy of the embedded model with all tokens, and what can be guessed, per task."""
    rows = _rows("methods")
    names = {"full": "all tokens", "blank": "a blank picture", "majority": "the most frequent answer"}
    mine = {row["method"]: row["accuracy"] for row in rows if row["method"] in names}
    tasks = list(mine["full"])
    return _markdown(["", *tasks], [[names[method], *(f"{mine[method][task]:.3f}" for task in tasks)] for method in names])


def speed() -> str:
    """Time to the first token and prefill of the 100 M model: full, pruned and the limit; a line per setting."""
    rows = _rows("bench_pyramid")
    full, lines = rows[0], []
    for method, title in {"pyramid": "0", "pyramid:prune_layer=2": "2"}.items():
        for row in (row for row in rows if row["method"] == method):
            lines.append(
                [
                    title, f"{100 * row['keep_ratio']:g} %", f"{row['average_tokens']:,.0f}",
                    *(f"{each['encode']['median'] + each['prefill']['median']:.2f} s" for each in (full, row)),
                    f"{full['prefill']['median']:.2f} s", f"{row['prefill']['median']:.2f} s", f"{row['speed_up']:.1f}x",
                    f"{row['over_limit']:.3f}", f"{row['over_bound']:.3f}", f"{100 * row['select_share']:.1f} %",
                    f"{row['flops'] / full['flops']:.2f}", f"{row['peak_memory'] / full['peak_memory']:.2f}",
                    f"{row['cache_bytes'] / full['cache_bytes']:.2f}",
                ]
            )  # fmt: skip
    heads = ["prune_layer", "kept", "average", "first token, full", "ptp", "prefill, full", "ptp", "speed-up", "ptp / limit"]
    heads.append("ptp / (K full + rest)")
    return _markdown([*heads, "selection / full", "FLOPs", "peak memory", "KV cache"], lines)


def models() -> str:
    """Prefill of a 100 M model of each family at 25 % of its visual tokens: a line per preset."""
    lines = []
    for preset in _presets():
        data = json.loads((RESULTS / "models" / f"{preset}.json").read_text())
        full, mine, limit = (
            next(row for row in data["rows"] if row["method"] == name) for name in ("full", "pyramid", "limit")
        )
        times = [f"{row['prefill']['median']:.2f} s" for row in (full, mine, limit)]
        lines.append(
            [
                f"`{preset}`", f"{full['visual_tokens']:,}", f"{mine['visual_tokens']:,}", *times, f"{mine['speed_up']:.1f}x",
                f"{mine['over_limit']:.3f}", f"{100 * mine['select_share']:.1f} %",
                f"{mine['encode']['median'] / full['encode']['median']:.2f}",
            ]
        )  # fmt: skip
    heads = ["`--preset`", "visual tokens", "kept", "full", "ptp", "limit", "speed-up", "ptp / limit", "selection / full"]
    return _markdown([*heads, "encoder, read / plain"], lines)


def models_bound(docs: str = "docs/") -> str:
    """By how much the slowest family, and the others, are above their limits: a sentence for a page that sees `docs` there."""
    above = {}
    for preset in _presets():
        rows = json.loads((RESULTS / "models" / f"{preset}.json").read_text())["rows"]
        above[preset] = next(row["over_limit"] for row in rows if row["method"] == "pyramid") - 1
    slowest = max(above, key=lambda preset: above[preset])
    others = max(share for preset, share in above.items() if preset != slowest)
    return (
        f"Each of them prefills within {math.ceil(100 * others)} % of [its limit]({docs}results/models.md), but "
        f"`{slowest}` within {math.ceil(100 * above[slowest])} %."
    )


def _presets() -> list[str]:
    """All that were measured; those that this release of transformers is too old for come last."""
    measured = sorted(path.stem for path in (RESULTS / "models").glob("*.json"))
    return [*FAMILY_PRESETS, *(name for name in measured if name not in FAMILY_PRESETS)]


def models_commands() -> str:
    """The commands that measured them, and on what."""
    presets = _presets()
    first = json.loads((RESULTS / "models" / f"{presets[0]}.json").read_text())["about"]
    command = first["command"].replace(presets[0], "$preset")
    loop = "for preset in " + " ".join(presets) + "; do\n    .venv/bin/" + command + "\ndone"
    return "```\n" + loop.replace("; do", "; do", 1) + "\n```"


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
    for title, method in ABLATION[group].items():
        line = [title, f"`{method}`"]
        for keep in ratios:
            text = f"{100 * rows[method, keep]['relative']:.1f} %"
            if method != "pyramid":
                change = (100 * (value - 1) for value in relative(right[method, keep], right["pyramid", keep]))
                text += " ({:+.1f} [{:+.1f}, {:+.1f}])".format(*change)
            line.append(f"{text}, {mean_evidence(rows[method, keep]):.2f}")
        lines.append(line)
    return _markdown(["", "`ptp eval --methods`", *(f"{100 * keep:g} % kept" for keep in ratios)], lines)


def rivals() -> str:
    """A line per rival that was read otherwise in version 0.1: accuracy then and now, relative to all tokens."""
    parsed = [json.loads((RESULTS / name).read_text()) for name in ("rivals_before.json", "methods.json")]
    then, now = ({(row["method"], row["keep_ratio"]): row for row in data["rows"]} for data in parsed)
    ratios = sorted({keep for _, keep in then}, reverse=True)

    def shown(row: dict | None) -> str:
        if row is None:
            return "out of reach"
        low, high = row["relative_interval"]
        return f"{100 * row['relative']:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"

    lines = [
        [f"`{method}`", *(f"{shown(then.get((method, keep)))} -> {shown(now.get((method, keep)))}" for keep in ratios)]
        for method in dict.fromkeys(method for method, _ in then)
    ]
    return _markdown(["method", *(f"{100 * keep:g} % kept" for keep in ratios)], lines)
