"""`ptp eval --suite`: the paper's benchmarks, or any others of lmms-eval's, unpruned and by every method."""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..adapters import adapter_for
from ..errors import UnsupportedModelError
from ..evaluation.baselines import DOWNSAMPLE, FULL
from ..evaluation.journal import Journal
from ..evaluation.lmms.run import Bench
from ..evaluation.lmms.suites import Benchmark, benchmarks
from ..evaluation.lmms.table import markdown, means, overview, rows
from ..evaluation.own import pruners_of
from ..loader import load
from ..methods.parsing import parse_variants
from ..selection import check_keep_ratio
from .options import (
    check_match,
    check_suffix,
    check_writable,
    model_identity,
    parse_ratios,
    provenance,
    show_table,
    titled,
    told_ratios,
    write_whole,
)

SUFFIXES = (".json", ".md")
JOURNAL = ".runs.jsonl"


def evaluate_suite(
    suite: str,
    include: Path | None,
    judge: bool,
    methods: str,
    keep: str,
    match: str,
    limit: int | None,
    batch_size: int,
    model: str | None,
    device: str,
    threads: int,
    out: Path | None,
    force: bool,
) -> None:
    """Score every benchmark of `suite` unpruned and by every method. Arguments as the options of `ptp eval`."""
    console = Console(file=sys.stdout)  # what lmms-eval prints is held back meanwhile
    asked = benchmarks(suite)
    left_out = [f"{one.name} (`{one.task}`) is scored by a judge: left out without --judge." for one in asked if one.judge]
    left_out = [] if judge else left_out
    chosen = [one for one in asked if judge or not one.judge]
    check_match(match)
    variants = parse_variants(methods, (DOWNSAMPLE,))
    contenders = [variant for variant in variants if variant.method != DOWNSAMPLE]
    if len(contenders) < len(variants):
        left_out.append(f"{DOWNSAMPLE} needs pictures that were drawn in known tiles: left out with --suite.")
    for line in left_out:
        console.print(line.replace("`", ""), highlight=False, markup=False)
    ratios = parse_ratios(keep)
    for ratio in ratios:
        check_keep_ratio(ratio)
    journal = None
    settings: dict[str, Any] = {"model": model_identity(model), "limit": limit, "match": match}
    if out is not None:
        check_suffix(out, SUFFIXES)
        for suffix in (*SUFFIXES, JOURNAL):
            check_writable(out.with_suffix(suffix))
        journal = Journal(out.with_suffix(JOURNAL), settings, force)
    torch.set_num_threads(threads)
    loaded, processor = load(model, device=device)
    told = told_ratios(contenders, [ratio for ratio in ratios if ratio < 1], match, len(adapter_for(loaded).layers), console)
    pruners = pruners_of(contenders, told)
    for pruner in pruners.values():
        with pruner(loaded, processor):
            pass  # a method that does not fit the model is refused before anything is fetched
    runs = {(run["benchmark"], run["method"], run["keep_ratio"]): run for run in (journal.rows if journal else [])}
    columns = [(FULL, 1.0), *pruners]
    failed: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(loaded, processor, include, limit, batch_size, Path(folder))
        for one in chosen:
            bench.check(one)
        bars = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        with Progress(*bars, console=console, transient=True) as progress:
            planned = [(one, key) for one in chosen for key in columns if (one.name, *key) not in runs]
            whole = progress.add_task("Benchmarks", total=len(planned))
            for one, (method, ratio) in planned:
                bar = progress.add_task(f"{one.name} {method} {ratio:g}", total=None)
                try:
                    found = bench.run(one, pruners.get((method, ratio)), lambda count, bar=bar: progress.advance(bar, count))  # type: ignore[misc]
                except (UnsupportedModelError, torch.OutOfMemoryError):
                    raise
                except Exception as error:  # a benchmark that cannot be had is no reason to lose the others
                    failed.append(f"{one.name} (`{one.task}`), {method} {ratio:g}: {_reason(error)}")
                    found = None
                if found is not None:
                    run = {"benchmark": one.name, "method": method, "keep_ratio": ratio, **found}
                    if journal:
                        journal.append(run)
                    runs[one.name, method, ratio] = run
                progress.remove_task(bar)
                progress.advance(whole)
    ordered = [runs[one.name, *key] for one in chosen for key in columns if (one.name, *key) in runs]
    table = rows(ordered, chosen)
    if table:
        show_table(overview(table), console)
    if out is not None and ordered:
        left_out += [f"failed: {reason}" for reason in failed]
        _write(out, suite, settings, contenders_named=[one.name for one in contenders], ratios=ratios, runs=ordered,
               table=table, chosen=chosen, left_out=left_out)  # fmt: skip
        console.print(f"Wrote {out} and its .md.", highlight=False, markup=False)
    if failed:
        count = f"{len(failed)} of {len(planned)} runs failed"
        raise ValueError(f"{count}, the first: {failed[0]}. The same command tries them again.")


def _reason(error: BaseException) -> str:
    """What began it: lmms-eval tries again and again, and wraps what went wrong."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0][:300]}"


def _write(
    out: Path,
    suite: str,
    settings: dict[str, Any],
    *,
    contenders_named: list[str],
    ratios: list[float],
    runs: list[dict[str, Any]],
    table: list[dict[str, Any]],
    chosen: list[Benchmark],
    left_out: list[str],
) -> None:
    """NAME.json with everything that repeats it, a run a line; NAME.md with the table."""
    about = {**provenance(), "suite": suite, "model": settings["model"], "limit": settings["limit"]}
    about["versions"] = {**about["versions"], "lmms-eval": runs[0]["versions"]["lmms-eval"]}
    told = {"settings": {**settings, "suite": suite, "methods": contenders_named, "keep": ratios}, "left_out": left_out}
    head = json.dumps({"about": about, **told, "rows": table, "means": means(table)}, indent=1)[:-2]
    lines = ",\n".join(json.dumps(run, separators=(",", ":")) for run in runs)
    write_whole(out, lambda path: path.write_text(f'{head},\n "runs": [\n{lines}\n ]\n}}\n'))
    page = titled(f"{suite}: {settings['model']}", markdown(table, chosen, left_out), about)
    write_whole(out.with_suffix(".md"), lambda path: path.write_text(page))
