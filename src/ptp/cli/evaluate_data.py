"""`ptp eval --data`: methods on questions of one's own, by right answers or by agreement with the unpruned model."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..adapters import adapter_for
from ..errors import UnsupportedModelError
from ..evaluation.baselines import DOWNSAMPLE
from ..evaluation.data import BadRow, Question, count_rows, read_questions
from ..evaluation.journal import Journal, append_line
from ..evaluation.metrics import METRICS
from ..evaluation.own import Answered, Asker, pruners_of
from ..evaluation.own_summary import comma_separated, markdown, overview, plot, rows
from ..loader import load
from ..methods.parsing import parse_variants
from ..pruner import Pruner
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

SUFFIXES = (".json", ".md", ".csv", ".png")
JOURNAL, BAD = ".rows.jsonl", ".bad.jsonl"


def evaluate_data(
    data: Path,
    methods: str,
    keep: str,
    match: str,
    metric: str,
    limit: int | None,
    max_new_tokens: int,
    model: str | None,
    device: str,
    threads: int,
    out: Path | None,
    force: bool,
) -> None:
    """Ask every question of `data` unpruned and by every method. Arguments as the options of `ptp eval`."""
    console = Console()
    if metric not in METRICS:
        raise ValueError(f"--metric must be one of {', '.join(METRICS)}, got {metric!r}. Choose one of these.")
    check_match(match)
    variants = parse_variants(methods, (DOWNSAMPLE,))
    contenders = [variant for variant in variants if variant.method != DOWNSAMPLE]
    if len(contenders) < len(variants):
        console.print(f"{DOWNSAMPLE} needs pictures that were drawn in known tiles. Left out with --data.", highlight=False)
    ratios = parse_ratios(keep)
    for ratio in ratios:
        check_keep_ratio(ratio)
    total = min(count_rows(data), limit or 1 << 62)
    journal = None
    if out is not None:
        check_suffix(out, SUFFIXES)
        for suffix in (*SUFFIXES, JOURNAL, BAD):
            check_writable(out.with_suffix(suffix))
        settings: dict[str, Any] = {"data": _digest(data), "methods": [one.name for one in contenders], "keep": ratios}
        settings |= {"match": match, "metric": metric, "max_new_tokens": max_new_tokens, "model": model_identity(model)}
        journal = Journal(out.with_suffix(JOURNAL), settings, force)
    torch.set_num_threads(threads)
    loaded, processor = load(model, device=device)
    told = told_ratios(contenders, [ratio for ratio in ratios if ratio < 1], match, len(adapter_for(loaded).layers), console)
    asker = Asker(loaded, processor, contenders, max_new_tokens)
    answered = {row["number"]: Answered.from_dict(row) for row in (journal.rows if journal else []) if row["number"] < total}
    bad: list[BadRow] = []
    pruners = pruners_of(contenders, told)
    for pruner in pruners.values():
        with pruner(loaded, processor):
            pass  # a method that does not fit the model is no row's fault
    bars = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*bars, console=console, transient=True) as progress:
        bar = progress.add_task("Questions", total=total - len(answered))
        for question in read_questions(data):
            if question.number >= total:
                break
            if question.number in answered:
                continue
            one = _ask(asker, question, pruners, metric)
            if isinstance(one, BadRow):
                _keep_bad(out, one, first=not bad)
                bad.append(one)
            else:
                if journal:
                    journal.append(one.to_dict())
                answered[one.number] = one
            progress.advance(bar)
    _say_bad(bad, out, console)
    found = [answered[number] for number in sorted(answered)]
    if not found:
        raise ValueError(f"No row of {str(data)!r} could be asked; row {bad[0].number}: {bad[0].reason}")
    table = rows(found)
    show_table(overview(table), console)
    if out is not None:
        _write(out, data, model, settings, metric, found, table, bad)
        console.print(f"Wrote {out} and its .md, .csv and .png.", highlight=False, markup=False)


def _ask(asker: Asker, question: Question | BadRow, pruners: dict[tuple[str, float], Pruner], metric: str) -> Answered | BadRow:
    """What was found out about a row; or why it cannot be asked."""
    if isinstance(question, BadRow):
        return question
    try:
        return asker.ask(question, asker.prepare(question), pruners, METRICS[metric])
    except UnsupportedModelError:
        raise
    except ValueError as error:
        return BadRow(question.number, str(error))


def _keep_bad(out: Path | None, row: BadRow, first: bool) -> None:
    """Note it in the side file: rows that are no questions, or whose pictures cannot be read."""
    if out is not None:
        if first:
            out.with_suffix(BAD).write_text("")  # an earlier run's
        append_line(out.with_suffix(BAD), {"row": row.number, "reason": row.reason})


def _say_bad(bad: list[BadRow], out: Path | None, console: Console) -> None:
    if bad:
        where = f" Their reasons are in {out.with_suffix(BAD)}." if out else ""
        told = f"Left out {len(bad)} bad rows, the first: row {bad[0].number}: {bad[0].reason}{where}"
        console.print(told, highlight=False, markup=False)
    elif out is not None:
        out.with_suffix(BAD).unlink(missing_ok=True)  # of an earlier run: they have been mended


def _write(
    out: Path,
    data: Path,
    model: str | None,
    settings: dict[str, Any],
    metric: str,
    found: list[Answered],
    table: list[dict[str, Any]],
    bad: list[BadRow],
) -> None:
    """NAME.json with everything, an answered question a line; NAME.md, .csv and .png with the summary."""
    about = {**provenance(), "data": settings["data"], "model": settings["model"]}
    head = json.dumps({"about": about, "settings": settings, "rows": table}, indent=1)[:-2]
    lines = ",\n".join(json.dumps(one.to_dict(), separators=(",", ":")) for one in found)
    write_whole(out, lambda path: path.write_text(f'{head},\n "answers": [\n{lines}\n ]\n}}\n'))
    title = f"{data.name} asked of {'the embedded model' if model is None else model}"
    page = titled(title, markdown(table, metric, len(bad)), about)
    write_whole(out.with_suffix(".md"), lambda path: path.write_text(page))
    write_whole(out.with_suffix(".csv"), lambda path: path.write_text(comma_separated(table)))
    write_whole(out.with_suffix(".png"), lambda path: plot(table, path))


def _digest(data: Path) -> str:
    """A name for the file that changes with what is in it."""
    with data.open("rb") as file:
        return f"{data.name} {hashlib.file_digest(file, 'sha256').hexdigest()[:12]}"
