"""`ptp tune`: how few tokens suffice on this model and these pictures, and by what method."""

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ..adapters import adapter_for
from ..conversation import reader
from ..errors import require_extra
from ..evaluation.data import BadRow
from ..evaluation.journal import Journal, append_line
from ..evaluation.own import Asker
from ..loader import load
from ..pruner import Pruner
from ..selection import check_keep_ratio
from ..tuning.candidates import SHARES, all_methods, arms, candidates
from ..tuning.outcome import lines, verdict
from ..tuning.report import contents, overview, plot
from ..tuning.rows import Halves, halves, name_of, questions_about, questions_in
from ..tuning.statistics import Finding
from ..tuning.tuned import shape_of
from ..tuning.tuner import Tuner, fitting, signal_readers
from .options import check_suffix, check_writable, model_identity, parse_ratios, provenance, show_table, write_whole

SUFFIXES, JOURNAL, BAD = (".json", ".png"), ".notes.jsonl", ".bad.jsonl"


def tune(
    out: Annotated[Path, typer.Option(help="Write NAME.json and NAME.png (give NAME.json); the same command resumes.")],
    data: Annotated[
        Path | None, typer.Option(help="Questions: parquet, .jsonl or .csv with columns image, question. No answers needed.")
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option(help="A directory of pictures instead: a few generic questions each.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Checkpoint directory or hub id; default: the embedded ptp-tiny.")] = None,
    max_change: Annotated[float, typer.Option(help="Share of answers that may change, in (0, 1).")] = 0.01,
    methods: Annotated[str, typer.Option(help="Methods that race, comma-separated, or all; with settings as given.")] = "all",
    keep: Annotated[
        str | None, typer.Option(help="Shares of the tokens, averaged over layers; default: 0.9 down to 0.1.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=2, help="Questions at most.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 32,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N or mps.")] = "cpu",
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 2,
    force: Annotated[bool, typer.Option("--force", help="Start again and overwrite existing results.")] = False,
) -> None:
    """Find the smallest keep whose answers stay the unpruned model's, and check what the signals say. No labels needed."""
    require_extra("ptp tune", "eval", "scipy", "matplotlib")
    console = Console()
    source = _check(data, pictures, max_change)
    check_suffix(out, SUFFIXES)
    for suffix in (*SUFFIXES, JOURNAL, BAD):
        check_writable(out.with_suffix(suffix))
    shares = sorted(SHARES if keep is None else parse_ratios(keep), reverse=True)
    for share in shares:
        check_keep_ratio(share)
    asked = (questions_about(source, limit), []) if pictures is not None else questions_in(source, limit)
    split = halves(*asked)
    torch.set_num_threads(threads)
    loaded, processor = load(model, device=device, dtype=dtype)
    adapter = adapter_for(loaded, reader(loaded, processor))
    depth = len(adapter.layers)
    names = [part for name in methods.split(",") for part in (all_methods() if name.strip() == "all" else [name.strip()])]
    variants, refused = fitting(loaded, processor, adapter, candidates(dict.fromkeys(names), depth))
    window = variants[0].pruner(0.5).window if variants else Pruner.window
    asker = Asker(loaded, processor, variants, max_new_tokens, signal_readers(depth, window))
    variants, more = _tried(asker, split, variants)
    refused |= more
    if not variants:
        raise ValueError(f"No method fits this model: {next(iter(refused.values()), 'none was named')}")
    for name, reason in refused.items():
        console.print(f"{name} is left out: {reason}", highlight=False, markup=False)
    runners = arms(variants, shares, depth)
    if not runners:
        raise ValueError(f"No method can average {', '.join(f'{share:g}' for share in shares)} of the tokens. Keep more.")
    identity = model_identity(model)
    settings: dict[str, Any] = {"data": name_of(source, asked[0]), "model": identity, "max_new_tokens": max_new_tokens}
    settings |= {"limit": limit, "arms": [arm.key for arm in runners], "dtype": str(loaded.dtype).removeprefix("torch.")}
    journal = Journal(out.with_suffix(JOURNAL), settings, force)
    bars = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %"), TimeRemainingColumn())
    with Progress(*bars, console=console, transient=True) as progress:
        bar = progress.add_task("Signals", total=None)

        def advance(what: str, done: int, total: int) -> None:
            progress.update(bar, description=what, completed=done, total=total)

        tuner = Tuner(asker, split, runners, journal.rows, journal.append, advance)
        findings, unread = tuner.check_signals()
        _say_signals(findings, unread, console)
        finalists = tuner.finalists(tuner.race())
        results, groups = tuner.report(finalists)
        times = tuner.clock(finalists) if groups else {}
    bad = [*((row.number, row.reason) for row in split.bad), *tuner.bad]
    _write_bad(bad, out, console)
    if not finalists or not groups:
        raise ValueError(f"No row of one half could be asked; row {bad[0][0]}: {bad[0][1]}")
    found = lines(results, groups, times, max_change)
    show_table(overview(found), console)
    for line in verdict(found, max_change):
        console.print(line, highlight=False, markup=False)
    settings |= {"device": device, "threads": threads}
    extra = {
        "data": settings["data"],
        "questions": {"choosing": len(split.choosing), "reporting": len(split.reporting), "bad": len(bad)},
        "settings": settings,
        "signals": [{**vars(one), "verdict": one.verdict} for one in findings],
        "signals_unread": unread,
        "left_out": refused,
        "first_token_rounds": times,
    }
    written = contents(found, provenance(), identity, shape_of(loaded), max_change, extra)
    write_whole(out, lambda path: path.write_text(json.dumps(written, indent=1) + "\n"))
    write_whole(out.with_suffix(".png"), lambda path: plot(found, max_change, path))
    console.print(f"Wrote {out} and its .png. Use it with: --settings {out}", highlight=False, markup=False)


def _check(data: Path | None, pictures: Path | None, max_change: float) -> Path:
    """Where the questions come from; ValueError where the options do not go together."""
    if (source := data or pictures) is None or (data and pictures):
        raise ValueError("Pass --data FILE with questions, or --pictures DIRECTORY, and not both.")
    if not 0 < max_change < 1:
        raise ValueError(f"--max-change must be in (0, 1), got {max_change}. Try 0.01: one answer in a hundred.")
    return source


def _tried(asker: Asker, split: Halves, variants: list[Any]) -> tuple[list[Any], dict[str, str]]:
    """The variants that the first question that can be asked can be asked by."""
    full = None
    for row in split.choosing:
        try:
            full = asker.unpruned(row, asker.prepare(row))
            break
        except ValueError:
            continue  # the race says so
    if full is None:
        return variants, {}
    return fitting(asker.model, asker.processor, asker.adapter, variants, partial(asker.led, full))


def _say_signals(findings: list[Finding], unread: dict[str, str], console: Console) -> None:
    for finding in findings:
        console.print(finding.line(), highlight=False, markup=False)
    for name, reason in unread.items():
        console.print(f"{name}: cannot be read here ({reason})", highlight=False, markup=False)


def _write_bad(bad: list[tuple[int, str]], out: Path, console: Console) -> None:
    """Rows that are no questions, or whose pictures cannot be read, with their reasons in a side file."""
    path = out.with_suffix(BAD)
    path.unlink(missing_ok=True)
    rows = [BadRow(number, reason) for number, reason in sorted(set(bad))]
    for row in rows:
        append_line(path, {"row": row.number, "reason": row.reason})
    if rows:
        told = f"Left out {len(rows)} bad rows, the first: row {rows[0].number}: {rows[0].reason} Their reasons are in {path}."
        console.print(told, highlight=False, markup=False)
