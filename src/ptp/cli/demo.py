"""`ptp demo`: the embedded model on the pictures that ship with the package, full and pruned."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from .. import __version__
from ..bench.measure import compare
from ..loader import load
from ..methods import PyramidPruner
from ..report import Page, write_page
from ..tiny.demo import load_demo
from .options import answer_row, answer_table, check_output, write_whole

KEEP_RATIOS = (0.5, 0.2)


def demo(
    html: Annotated[Path, typer.Option(help="Write the HTML page here.")] = Path("demo.html"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing page.")] = False,
) -> None:
    """Answer questions about the demo pictures with all visual tokens, with 50 % and with 20 % of them."""
    check_output(html, force)
    model, processor = load()
    pictures, questions = load_demo()
    page = Page("Pyramid Token Pruning: the demo")
    right = {1.0: 0, **dict.fromkeys(KEEP_RATIOS, 0)}
    with Progress(transient=True) as progress:
        for entry in progress.track(questions, description="Asking"):
            for keep in KEEP_RATIOS:
                pruner = PyramidPruner(keep_ratio=keep)
                picture = pictures[entry.picture]
                result = compare(model, processor, [picture], entry.question, pruner, max_new_tokens=8)
                page.answers.append(answer_row(entry.question, keep, result))
                page.traces.append((f"{entry.question} ({100 * keep:g} % kept)", [picture], result.trace))
                right[keep] += result.pruned == entry.answer
            right[1.0] += result.full == entry.answer
    page.settings = {**dataclasses.asdict(pruner), "keep_ratio": KEEP_RATIOS, "model": "ptp-tiny", "ptp": __version__}
    write_whole(html, lambda path: write_page(page, path))
    console = Console()
    console.print(answer_table(page.answers))
    score = ", ".join(f"{100 * keep:g} % of tokens {count}/{len(questions)}" for keep, count in right.items())
    console.print(f"Right answers: {score}. Wrote {html}.", highlight=False, markup=False)
