"""`ptp eval`: accuracy of a model per task, method and keep ratio."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..adapters import adapter_for
from ..errors import require_extra
from ..evaluation import Cell, Examiner, batches, draw_sample, plan
from ..evaluation.baselines import DOWNSAMPLE
from ..evaluation.metrics import METRICS
from ..evaluation.results_file import read_cells, to_json
from ..evaluation.samples import SPLITS
from ..evaluation.summary import comma_separated, markdown, overview, per_task, plot, rows
from ..loader import load
from ..methods.parsing import parse_variants
from ..selection import check_keep_ratio
from ..tiny import WEIGHTS
from ..tiny.difficulty import read_difficulty
from .evaluate_data import evaluate_data
from .evaluate_suite import evaluate_suite
from .options import (
    check_match,
    check_suffix,
    check_writable,
    model_identity,
    parse_ratios,
    provenance,
    refuse_given,
    settings_from,
    show_table,
    titled,
    told_ratios,
    write_whole,
)

SUFFIXES = (".json", ".md", ".csv", ".png")
METHODS_ASKED, RATIOS_ASKED = "pyramid,random,downsample", "1.0,0.5,0.25,0.1"
"""Where nothing else is named."""


def evaluate(
    methods: Annotated[
        str, typer.Option(help="Methods, comma-separated, downsample among them, or all; pyramid:alpha=0 changes a setting.")
    ] = METHODS_ASKED,
    keep: Annotated[str, typer.Option(help="Keep ratios, comma-separated; all tokens are always measured.")] = RATIOS_ASKED,
    match: Annotated[
        str, typer.Option(help="What --keep is: final (after the last stage) or average (over the language model's layers).")
    ] = "final",
    tuned: Annotated[
        Path | None, typer.Option("--settings", help="Method and keep as ptp tune found them: tuned.json.")
    ] = None,
    tasks: Annotated[str, typer.Option(help="Tasks, comma-separated, or all.")] = "all",
    samples: Annotated[int, typer.Option(min=2, help="Pictures.")] = 500,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same pictures.")] = 0,
    split: Annotated[str, typer.Option(help="report, or tune for choosing settings.")] = "report",
    model: Annotated[
        str | None, typer.Option(help="Checkpoint directory, or one of several (jury); default: the embedded ptp-tiny.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N or mps.")] = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 2,
    out: Annotated[
        Path | None, typer.Option(help="Write NAME.json, .md, .csv and .png (give NAME.json); the same command resumes.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Start again and overwrite existing results.")] = False,
    data: Annotated[
        Path | None,
        typer.Option(help="Questions of your own instead: parquet, .jsonl or .csv with columns image, question, (answer)."),
    ] = None,
    metric: Annotated[str, typer.Option(help=f"How --data's answers are judged: {', '.join(METRICS)}.")] = "contains",
    limit: Annotated[int | None, typer.Option(min=1, help="Rows of --data, or of each task of --suite, at most.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer to --data, in tokens.")] = 32,
    suite: Annotated[
        str | None,
        typer.Option(help="Benchmarks by lmms-eval instead: paper, telling, or its tasks, comma-separated."),
    ] = None,
    include_path: Annotated[Path | None, typer.Option(help="Directory of lmms-eval tasks of your own, for --suite.")] = None,
    judge: Annotated[bool, typer.Option("--judge", help="Run tasks of --suite that a judge model scores, too.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions of --suite answered at a time.")] = 1,
) -> None:
    """Measure accuracy on fresh pictures: the same ones for every method. Several models write NAME-MODEL.json and so on."""
    if tuned is not None:
        given = {"--methods": methods != METHODS_ASKED, "--keep": keep != RATIOS_ASKED, "--match": match != "final"}
        found = settings_from(tuned, model, given)
        methods, keep = found.name, repr(found.keep_ratio)
    for one in _models_in(model):
        asked = dict(methods=methods, keep=keep, match=match, tasks=tasks, samples=samples, seed=seed, split=split)
        asked |= dict(data=data, metric=metric, limit=limit, max_new_tokens=max_new_tokens)
        asked |= dict(suite=suite, include_path=include_path, judge=judge, batch_size=batch_size)
        own = out and out.with_name(f"{out.stem}-{one.name}{out.suffix}")
        Console().print(str(one), highlight=False, markup=False)
        evaluate(**asked, model=str(one), device=device, threads=threads, out=own, force=force)  # type: ignore[arg-type]
    if _models_in(model):
        return
    if suite is None:
        require_extra("ptp eval", "eval", "scipy", "matplotlib")
    of_drawn = {"--tasks": tasks != "all", "--samples": samples != 500, "--seed": seed != 0, "--split": split != "report"}
    of_data = {"--metric": metric != "contains", "--max-new-tokens": max_new_tokens != 32}
    of_suite = {"--include-path": include_path, "--judge": judge, "--batch-size": batch_size != 1}
    if data is not None:
        refuse_given(of_drawn | of_suite | {"--suite": suite}, "--data")
        evaluate_data(data, methods, keep, match, metric, limit, max_new_tokens, model, device, threads, out, force)
        return
    if suite is not None:
        refuse_given(of_drawn | of_data, "--suite")
        chosen = (methods, keep, match, limit, batch_size, model, device, threads, out, force)
        evaluate_suite(suite, include_path, judge, *chosen)
        return
    refuse_given(of_data | of_suite | {"--limit": limit}, "drawn pictures")
    difficulty = read_difficulty(WEIGHTS if model is None else Path(model))
    names = list(difficulty.tasks) if tasks == "all" else list(dict.fromkeys(tasks.split(",")))
    for name in names:
        if name not in difficulty.tasks:
            learned = ", ".join(difficulty.tasks)
            raise ValueError(
                f"--tasks must be among {learned} (what this model has learned), or all; got {name!r}. Choose among these."
            )
    if split not in SPLITS:
        raise ValueError(f"--split must be one of {', '.join(SPLITS)}, got {split!r}. Choose one of these.")
    check_match(match)
    contenders = {variant.name: variant for variant in parse_variants(methods, (DOWNSAMPLE,))}
    ratios = parse_ratios(keep)
    for ratio in ratios:
        check_keep_ratio(ratio)
    settings: dict[str, Any] = {"tasks": names, "methods": list(contenders), "keep": ratios, "samples": samples}
    settings |= {"seed": seed, "split": split, "match": match, "model": model_identity(model)}
    done: list[Cell] = []
    if out is not None:
        check_suffix(out, SUFFIXES)
        for suffix in SUFFIXES:
            check_writable(out.with_suffix(suffix))
        if not force:
            done = read_cells(out, settings)
    torch.set_num_threads(threads)
    loaded, processor = load(model, device=device)
    adapter = adapter_for(loaded)
    finished = {cell.key: cell for cell in done}
    console = Console()
    pruning = [contender for contender in contenders.values() if contender.method != DOWNSAMPLE]
    told = told_ratios(pruning, [ratio for ratio in ratios if ratio < 1], match, len(adapter.layers), console)
    planned = plan(list(contenders.values()), ratios, names)
    cells = [finished.get(cell.key, cell) for cell in planned if told.get(cell.key[1:], 1.0) is not None]
    bars = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*bars, console=console, transient=True) as progress:
        drawing = progress.track(range(samples), description="Drawing pictures")
        drawn = batches(draw_sample(seed, split, number, difficulty) for number in drawing)
        examiner = Examiner(loaded, processor, drawn, list(contenders.values()))
        whole = progress.add_task("All cells", total=len(cells), completed=len(done))
        for number, cell in enumerate(cells):
            if cell.key in finished:
                continue
            bar = progress.add_task(f"{cell.method} {cell.keep_ratio:g} {cell.task}", total=samples)
            kept = told.get((cell.method, cell.keep_ratio))
            examiner.fill(cell, contenders.get(cell.method), partial(progress.advance, bar), kept)
            progress.remove_task(bar)
            progress.advance(whole)
            if out is not None:
                complete = [c for c in cells[: number + 1] if c.right]
                _save(out, settings, complete, names)
    table = rows(cells, names)
    for lines in (overview(table), per_task(table, names)):
        show_table(lines, console)
    if out is not None:
        about = _save(out, settings, cells, names)
        text = titled(f"Accuracy of {'the embedded model' if model is None else model}", markdown(table, names), about)
        write_whole(out.with_suffix(".md"), lambda path: path.write_text(text))
        write_whole(out.with_suffix(".csv"), lambda path: path.write_text(comma_separated(table, names)))
        write_whole(out.with_suffix(".png"), lambda path: plot(table, path))
        console.print(f"Wrote {out} and its .md, .csv and .png.", highlight=False, markup=False)


def _save(out: Path, settings: dict[str, Any], cells: list[Cell], tasks: list[str]) -> dict[str, Any]:
    """Write the finished cells; what was there stays readable until they are. Returns their provenance."""
    about = {**provenance(), "samples": settings["samples"], "split": settings["split"], "model": settings["model"]}
    about["seconds"] = round(sum(cell.seconds for cell in cells))
    text = to_json(about, settings, cells, rows(cells, tasks))
    write_whole(out, lambda path: path.write_text(text))
    return about


def _models_in(model: str | None) -> list[Path]:
    """The checkpoints of a directory that is none itself but holds some, by name; none where it is one, or is not there."""
    if model is None or not Path(model).is_dir() or (Path(model) / "config.json").exists():
        return []
    return sorted(path.parent for path in Path(model).glob("*/config.json"))
