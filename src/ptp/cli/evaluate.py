"""`ptp eval`: accuracy of the embedded model per task, method and keep ratio."""

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ..evaluation import evaluate as run_evaluation
from ..evaluation import parse_variant
from ..evaluation.accuracy import SPLITS
from ..evaluation.summary import markdown, rows
from ..loader import load
from ..selection import check_keep_ratio
from ..tiny.tasks import TASKS
from .options import check_results, parse_ratios, write_results


def evaluate(
    methods: Annotated[
        str, typer.Option(help="Methods, comma-separated; pyramid:alpha=0 changes a setting.")
    ] = "pyramid,random",
    keep: Annotated[str, typer.Option(help="Keep ratios, comma-separated.")] = "1.0,0.5,0.2",
    tasks: Annotated[str, typer.Option(help="Tasks, comma-separated, or all.")] = "all",
    samples: Annotated[int, typer.Option(min=1, help="Pictures.")] = 500,
    seed: Annotated[int, typer.Option(help="Same seed, same pictures.")] = 0,
    split: Annotated[str, typer.Option(help="report, or tune for choosing settings.")] = "report",
    model: Annotated[str | None, typer.Option(help="Checkpoint directory; default: the embedded ptp-tiny.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write NAME.json and NAME.md here (give NAME.json).")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite existing results.")] = False,
) -> None:
    """Measure accuracy on fresh pictures: the same ones for every method."""
    names = list(TASKS) if tasks == "all" else tasks.split(",")
    for name in names:
        if name not in TASKS:
            raise ValueError(f"--tasks must be among {', '.join(TASKS)}, or all; got {name!r}.")
    if split not in SPLITS:
        raise ValueError(f"--split must be one of {', '.join(SPLITS)}, got {split!r}.")
    variants = [parse_variant(text) for text in methods.split(",")]
    ratios = parse_ratios(keep)
    for ratio in ratios:
        check_keep_ratio(ratio)
    check_results(out, force)
    loaded, processor = load(model)
    started = time.perf_counter()
    with Progress(transient=True) as progress:
        bar = progress.add_task("Asking", total=samples)
        cells = run_evaluation(
            loaded,
            processor,
            variants,
            ratios,
            tasks=names,
            samples=samples,
            seed=seed,
            split=split,
            advance=lambda: progress.advance(bar),
        )
    table = rows(cells, names)
    _show(table, names)
    if out is not None:
        text = markdown(table, names) + "\nBrackets: 95 % bootstrap intervals over pictures, the same ones in every row.\n"
        about = {"samples": samples, "split": split, "seconds": round(time.perf_counter() - started)}
        write_results(out, "Accuracy of the embedded model", text, table, about)


def _show(table: list[dict], tasks: list[str]) -> None:
    view = Table()
    for column in ("Method", "Keep", *tasks, "Mean / full", "Evidence kept"):
        view.add_column(column, justify="left" if column == "Method" else "right")
    for row in table:
        low, high = row["relative_interval"]
        view.add_row(
            row["method"],
            f"{row['keep_ratio']:g}",
            *(f"{row['accuracy'][task]:.3f}" for task in tasks),
            f"{100 * row['relative']:.1f} % [{100 * low:.1f}, {100 * high:.1f}]",
            f"{sum(row['evidence'].values()) / len(tasks):.2f}",
        )
    Console().print(view)
