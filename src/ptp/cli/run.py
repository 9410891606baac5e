"""`ptp run`: ask about a picture, with all visual tokens and pruned."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from .. import __version__
from ..bench.measure import compare
from ..loader import load
from ..pictures import open_picture
from ..report import Page, figure, write_page
from .options import answer_row, answer_table, build_pruner, check_output, settings_from, write_whole


def run(
    pictures: Annotated[list[Path] | None, typer.Argument(help="Picture files; several are shown in one prompt.")] = None,
    question: Annotated[str, typer.Option("-q", "--question", help="What to ask about them.")] = "",
    model: Annotated[str | None, typer.Option(help="Checkpoint directory or hub id; default: the embedded ptp-tiny.")] = None,
    method: Annotated[str, typer.Option(help="Pruning method; fastv:prune_layer=1 sets a setting.")] = "pyramid",
    keep: Annotated[float, typer.Option(help="Share of visual tokens kept, in (0, 1].")] = 0.5,
    alpha: Annotated[float | None, typer.Option(help="Weight of the instruction, in [0, 1].")] = None,
    prune_layer: Annotated[int | None, typer.Option(help="Layer at whose input tokens leave; 0 = before the LLM.")] = None,
    region: Annotated[str | None, typer.Option(help="Source of the tile saliency.")] = None,
    tuned: Annotated[
        Path | None, typer.Option("--settings", help="Method and keep as ptp tune found them: tuned.json.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 64,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N or mps.")] = "cpu",
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a self-contained HTML page here.")] = None,
    overlay: Annotated[Path | None, typer.Option(help="Write the kept tokens over the (first) picture here.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite existing files.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Ask a question about pictures, once with all visual tokens and once pruned."""
    if not question.strip():
        raise ValueError("A question is needed. Pass one with -q.")
    settings: dict[str, Any] = {"alpha": alpha, "prune_layer": prune_layer, "region": region}
    if tuned is not None:
        given = {"--method": method != "pyramid", "--keep": keep != 0.5, "--alpha": alpha is not None}
        given |= {"--prune-layer": prune_layer is not None, "--region": region is not None}
        found = settings_from(tuned, model, given)
        method, keep = found.name, found.keep_ratio
    pruner = build_pruner(method, keep_ratio=keep, **settings)
    check_output(html, force)
    check_output(overlay, force)
    if overlay is not None and not pictures:
        raise ValueError("--overlay needs a picture to lay it over. Name one, or leave it out.")
    images = [open_picture(path) for path in pictures or []]
    loaded, processor = load(model, device=device, dtype=dtype)
    result = compare(loaded, processor, images, question, pruner, max_new_tokens=max_new_tokens)
    trace = result.trace
    row = answer_row(question, keep, result)
    about = {
        "model": model or "ptp-tiny (embedded)",
        "method": method,
        **dataclasses.asdict(pruner),
        "device": str(loaded.device),
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "ptp": __version__,
    }
    if html is not None:
        page = Page(question, [row], [(f"Kept {100 * keep:g} %", images, trace)], about)
        write_whole(html, lambda path: write_page(page, path))
    if overlay is not None:
        kind = "PNG" if overlay.suffix.lower() == ".png" else "JPEG"
        write_whole(overlay, lambda path: figure(images[0], trace.images[0]).save(path, kind))
    if as_json:
        print(json.dumps({**dataclasses.asdict(row), "encode": result.encode, "settings": about, "trace": trace.to_dict()}))
        return
    console = Console()
    console.print(answer_table([row]))
    if not images:
        console.print("No picture in the prompt: nothing was pruned.")
    else:
        console.print(str(trace), highlight=False, markup=False)
        for text in dict.fromkeys(image.instruction for image in trace.images if image.instruction):
            console.print(f"Read as the instruction: {text}", highlight=False, markup=False)
    if html is not None:
        console.print(f"Wrote {html}", highlight=False, markup=False)
