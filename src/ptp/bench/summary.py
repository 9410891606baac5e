"""From measurements to tables and plots."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .rounds import FULL, LIMIT, NAIVE, Row
from .selection_cost import Cost, exponent

HEADS = {
    "prefill": ["method", "keep", "first token", "tokens", "average", "structure", "prefill", "speed-up", "/ limit", "/ bound"],
    "costs": ["method", "keep", "encode", "select", "per token", "TFLOP", "peak MiB", "KV MiB"],
}
NOTES = """Times in milliseconds, medians of interleaved rounds (of the prefill: and half its interquartile range). `first
token`: the time to it, encoder, selection and prefill together. `tokens`: visual tokens after the last stage; `average`:
averaged over the language model's layers; `structure`: line ends and tile markers beside them, which the limits keep, too.
`encode`: the vision encoder, with what the method reads there; `select`: scoring and selection; `prefill`: of the language
model, with what is scored and selected in it; `per token`: each output token. `speed-up` of the prefill, scoring in the encoder
counted against it.
`/ limit`: ours over the model fed only the tokens of the last stage, chosen for free; `/ bound`: over the mean over layers of
the model fed the tokens that each layer has; both are medians over rounds of ratios within a round. `peak`: memory the prefill
holds beyond weights and prompt; `KV`: the cache after it."""


def tables(rows: Sequence[Row]) -> dict[str, list[list[str]]]:
    """Lines of text under the `HEADS` of each table; times in milliseconds."""
    return {"prefill": [_prefill(row) for row in rows], "costs": [_costs(row) for row in rows]}


def _name(row: Row) -> list[str]:
    return [row.method, f"{row.keep_ratio:.3g}"]


def _prefill(row: Row) -> list[str]:
    spread = f"{_ms(row.prefill.median)} ±{50 * (row.prefill.high - row.prefill.low) / row.prefill.median:.0f} %"
    ratios = ["", ""] if row.method in (FULL, LIMIT) else [f"{row.over_limit:.3f}", f"{row.over_bound:.3f}"]
    tokens = [f"{row.visual_tokens:,}", f"{row.average_tokens:,.0f}", f"{row.structure_tokens:,}"]
    return [*_name(row), _ms(row.first_token.median), *tokens, spread, f"{row.speed_up:.2f}x", *ratios]


def _costs(row: Row) -> list[str]:
    times = [_ms(row.encode.median), "" if row.select is None else _ms(row.select.median), _ms(row.decode.median)]
    peak = "" if row.peak_memory is None else f"{row.peak_memory / 2**20:,.1f}"
    return [*_name(row), *times, f"{row.flops / 1e12:.3g}", peak, f"{row.cache_bytes / 2**20:,.1f}"]


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:,.0f}" if seconds >= 0.1 else f"{1000 * seconds:.3g}"


def markdown(rows: Sequence[Row], costs: Sequence[Cost], keep_ratio: float) -> str:
    """All tables, for docs/results."""
    both = tables(rows)
    return "\n\n".join(
        [
            markdown_table(HEADS["prefill"], both["prefill"]),
            markdown_table(HEADS["costs"], both["costs"]),
            NOTES,
            f"Selection alone at keep {keep_ratio:g}, in milliseconds, by the number of visual tokens (made-up pictures;\n"
            "a method that takes seconds gets no larger one), and the power of that number it grows with:",
            selection_table(costs) + "\n",
        ]
    )


def selection_table(costs: Sequence[Cost]) -> str:
    """A line per method, a column per number of visual tokens."""
    tokens = sorted({cost.visual_tokens for cost in costs})
    table = []
    for method, chosen in _by_method(costs).items():
        found = {cost.visual_tokens: f"{1000 * cost.seconds:.3g}" for cost in chosen}
        power = exponent(chosen)
        table.append([method, *(found.get(count, "") for count in tokens), "" if power is None else f"{power:.2f}"])
    return markdown_table(["method", *(f"{count:,}" for count in tokens), "power"], table)


def _by_method(costs: Sequence[Cost]) -> dict[str, list[Cost]]:
    return {method: [c for c in costs if c.method == method] for method in dict.fromkeys(cost.method for cost in costs)}


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join("| " + " | ".join(line) + " |" for line in (heads, ["---"] * len(heads), *rows))


def plot(rows: Sequence[Row], costs: Sequence[Cost], path: Path) -> None:
    """Time to the first token by part; prefill time against visual tokens with the limit drawn in; cost of selection against
    visual tokens. As PNG."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(18, 5), layout="constrained")
    first, prefill, selection = figure.subplots(1, 3)
    _stack(first, [row for row in rows if row.method != LIMIT and not row.method.endswith(NAIVE)])
    methods = list(dict.fromkeys(r.method for r in rows if r.method not in (FULL, LIMIT) and not r.method.endswith(NAIVE)))
    color = {name: colormaps["tab10" if len(methods) <= 10 else "tab20"](number) for number, name in enumerate(methods)}
    marker = {name: "os^vDPX*<>"[number % 10] for number, name in enumerate(methods)}
    line = sorted((row.visual_tokens, row.prefill.median) for row in rows if row.method in (FULL, LIMIT))
    prefill.plot(*zip(*line, strict=True), color="black", linewidth=1, label="limit: fed only these tokens")
    for row in rows:
        if row.method == FULL + NAIVE:
            prefill.plot(row.visual_tokens, row.prefill.median, "x", color="black", label=row.method)
    for name in methods:
        chosen = sorted((row for row in rows if row.method == name), key=lambda row: row.visual_tokens)
        times = [row.prefill.median for row in chosen]
        prefill.plot([row.visual_tokens for row in chosen], times, ":", marker=marker[name], color=color[name], label=name)
    for name, measured in _by_method(costs).items():
        times = [1000 * cost.seconds for cost in measured]
        style = {"marker": marker.get(name, "."), "color": color.get(name, "gray")}
        selection.plot([cost.visual_tokens for cost in measured], times, **style)
    prefill.set(xlabel="visual tokens after the last stage", ylabel="prefill (s)", xlim=(0, None), ylim=(0, None))
    selection.set(xlabel="visual tokens", ylabel="scoring and selection (ms)", xscale="log", yscale="log")
    _draw_linear(selection, costs)
    figure.legend(*prefill.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize="small")
    figure.savefig(path, format="png", dpi=120)


def _stack(axes: Any, rows: Sequence[Row]) -> None:
    """Bars of the time to the first token: encoder, scoring and selection, the rest of the prefill."""
    names, left = [f"{row.method} {row.keep_ratio:.2g}" for row in rows], [0.0] * len(rows)
    kinds = (("encoder", "0.75"), ("scoring and selection", "C3"), ("prefill and first token", "C0"))
    for number, (label, color) in enumerate(kinds):
        widths = [row.parts[number] for row in rows]
        axes.barh(names, widths, left=left, color=color, label=label)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("time to the first token (s)")
    axes.tick_params(axis="y", labelsize=max(4, min(9, 160 // max(len(rows), 1))))
    axes.legend(frameon=False, fontsize="small")


def _draw_linear(axes: object, costs: Sequence[Cost]) -> None:
    """A grey line of linear growth through the first method's last point."""
    chosen = next(iter(_by_method(costs).values()), [])
    if chosen:
        counts = [cost.visual_tokens for cost in chosen]
        times = [1000 * chosen[-1].seconds * count / counts[-1] for count in counts]
        axes.plot(counts, times, color="gray", linewidth=0.8)  # type: ignore[attr-defined]
        axes.annotate("linear", (counts[0], times[0]), color="gray", fontsize="small")  # type: ignore[attr-defined]
