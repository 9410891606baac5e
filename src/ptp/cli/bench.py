"""`ptp bench`: prefill time of full, pruned and the limit, side by side."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ..bench.prefill import bench_prefill
from ..bench.presets import PRESETS
from ..loader import parse_device, parse_dtype
from ..selection import check_keep_ratio
from .options import check_output, parse_ratios, provenance, write_whole


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
    check_output(out, force)
    where = parse_device(device)
    torch.set_num_threads(threads)
    model = PRESETS[preset](parse_dtype(dtype, where), where)
    with Progress(transient=True) as progress:
        bar = progress.add_task("Timing", total=len(ratios) * len(layers) * (rounds + 1))
        results = bench_prefill(model, ratios, layers, rounds, lambda: progress.advance(bar))
    table = Table(title=f"Prefill, {preset}, {results[0].visual_tokens[0]:,} visual tokens, {rounds} rounds, medians (ms)")
    for column in ("Layer", "Keep", "Kept", "Full", "Ours", "Limit", "Speed-up", "Ours / limit", "Ours / (K full + rest)"):
        table.add_column(column, justify="right")
    for r in results:
        table.add_row(
            str(r.prune_layer),
            f"{r.keep_ratio:g}",
            f"{r.visual_tokens[1]:,}",
            *(f"{1000 * t.median:.0f}" for t in (r.full, r.ours, r.limit)),
            f"{r.full.median / r.ours.median:.2f}x",
            f"{r.ratio:.3f}",
            f"{r.ratio_to_bound:.3f}",
        )
    Console().print(table)
    if out is not None:
        size = sum(parameter.numel() for parameter in model.parameters())
        about = {**provenance(), "device": str(where), "parameters": size, "rounds": rounds}
        data = json.dumps({"about": about, "results": [dataclasses.asdict(r) for r in results]}, indent=1) + "\n"
        write_whole(out, lambda path: path.write_text(data))
