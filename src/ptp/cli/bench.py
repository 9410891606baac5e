"""`ptp bench`: prefill time of full, pruned and the limit, side by side."""

import dataclasses
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ..bench.prefill import PrefillResult, bench_prefill
from ..bench.presets import PRESETS
from ..loader import parse_device, parse_dtype
from ..selection import check_keep_ratio
from .options import check_results, parse_ratios, write_results


def bench(
    preset: Annotated[str, typer.Option(help="Model shape, random weights.")] = "100m",
    keep: Annotated[str, typer.Option(help="Keep ratios, comma-separated.")] = "0.5,0.2",
    prune_layers: Annotated[str, typer.Option(help="Layers, comma-separated.")] = "0,2",
    rounds: Annotated[int, typer.Option(min=2, help="Timed rounds per setting.")] = 7,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 2,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N or mps.")] = "cpu",
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the measurements here as JSON.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite existing measurements.")] = False,
) -> None:
    """Time the language model's prefill: full, pruned, and the limit that no pruning can beat."""
    if preset not in PRESETS:
        raise ValueError(f"--preset must be one of {', '.join(PRESETS)}, got {preset!r}.")
    ratios = parse_ratios(keep)
    for ratio in ratios:
        check_keep_ratio(ratio)
    try:
        layers = [int(part) for part in prune_layers.split(",")]
    except ValueError as error:
        raise ValueError(f"--prune-layers must be layer numbers separated by commas, got {prune_layers!r}.") from error
    check_results(out, force)
    where = parse_device(device)
    torch.set_num_threads(threads)
    model = PRESETS[preset](parse_dtype(dtype, where), where)
    with Progress(transient=True) as progress:
        bar = progress.add_task("Timing", total=len(ratios) * len(layers) * (rounds + 1))
        results = bench_prefill(model, ratios, layers, rounds, lambda: progress.advance(bar))
    Console().print(_table(results, f"{preset}, {results[0].visual_tokens[0]:,} visual tokens, {rounds} rounds, medians (ms)"))
    if out is not None:
        size = sum(parameter.numel() for parameter in model.parameters())
        about = {"device": str(where), "dtype": str(model.dtype), "parameters": size, "rounds": rounds}
        rows = [dataclasses.asdict(result) for result in results]
        write_results(out, f"Prefill of the language model, {preset}", _markdown(results), rows, about)


COLUMNS = ("layer", "keep", "kept", "full", "ours", "limit", "speed-up", "ours / limit", "ours / (K full layers + rest)")


def _cells(r: PrefillResult) -> list[str]:
    times = (f"{1000 * t.median:.0f} [{1000 * t.low:.0f}, {1000 * t.high:.0f}]" for t in (r.full, r.ours, r.limit))
    ratios = (f"{r.full.median / (r.ours.median + r.signals):.2f}x", f"{r.ratio:.3f}", f"{r.ratio_to_bound:.3f}")
    return [str(r.prune_layer), f"{r.keep_ratio:g}", f"{r.visual_tokens[1]:,}", *times, *ratios]


def _table(results: list[PrefillResult], title: str) -> Table:
    table = Table(title=title)
    for column in COLUMNS:
        table.add_column(column, justify="right")
    for result in results:
        table.add_row(*_cells(result))
    return table


def _markdown(results: list[PrefillResult]) -> str:
    lines = [COLUMNS, ("---",) * len(COLUMNS), *map(_cells, results)]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"""{table}

Milliseconds: median [quartiles] of interleaved rounds, the vision encoder not counted. "Ours" includes selection; the ratios
also count the {1000 * results[0].signals:.1f} ms that scoring inside the vision encoder adds. The limit is the same model
fed only the kept tokens, chosen for free.
"""
