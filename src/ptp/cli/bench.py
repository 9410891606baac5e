"""`ptp bench`: speed and memory of full, of every method, and of the limit, side by side in one run."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from PIL import Image
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ..adapters import adapter_for
from ..adapters.internvl import InternVLAdapter
from ..bench.documents import draw, parse_kinds
from ..bench.first_token import HEADS as FIRST_TOKEN_HEADS
from ..bench.first_token import NOTES, Measured, check_single, measure, table
from ..bench.first_token import plot as plot_first_token
from ..bench.measure import encode_prompt
from ..bench.presets import FAMILY_PRESETS, FAMILY_SCALE, build, names
from ..bench.prompt import Prompt, Turn, cut, made_up_turn, make_prompt, picture_prompt, picture_turn
from ..bench.rounds import compete
from ..bench.selection_cost import selection_costs
from ..bench.summary import HEADS, markdown, markdown_table, plot, tables
from ..errors import require_extra
from ..loader import load, parse_device, parse_dtype
from ..methods.parsing import parse_variants
from ..pruner import Pruner
from ..selection import check_keep_ratio
from .options import check_match, check_results, parse_ratios, settings_from, told_ratios, write_results, write_whole

METHODS_ASKED, RATIOS_ASKED = "pyramid", "0.5,0.25,0.1"
"""Where nothing else is named."""
TILE_COUNTS = (1, 2, 4, 8, 16, 32, 64)
"""Pictures that the cost of selection is measured on: 256 to 16,384 visual tokens where a tile has 256."""


def bench(
    preset: Annotated[str, typer.Option(help=f"Model shape, random weights: {names()}.")] = "100m",
    model: Annotated[str | None, typer.Option(help="Checkpoint directory or hub id, instead of a preset.")] = None,
    methods: Annotated[
        str, typer.Option(help="Methods, comma-separated, or all; pyramid:alpha=0 sets a setting.")
    ] = METHODS_ASKED,
    keep: Annotated[str, typer.Option(help="Keep ratios, comma-separated.")] = RATIOS_ASKED,
    tuned: Annotated[
        Path | None, typer.Option("--settings", help="Method and keep as ptp tune found them: tuned.json.")
    ] = None,
    match: Annotated[
        str, typer.Option(help="What --keep is: final (after the last stage) or average (over the language model's layers).")
    ] = "final",
    tiles: Annotated[int, typer.Option(min=1, help="InternVL: tiles of the picture, the thumbnail among them.")] = 13,
    width: Annotated[int, typer.Option(min=56, help="Other families: width of the picture in pixels; it is 4 : 3.")] = 1792,
    pictures: Annotated[
        str | None,
        typer.Option(
            help="Time to the first token of these pictures instead, with what is saved in the encoder and without: documents, "
            "photographs, or some of page, full_page, slide, screenshot, chart, photograph. Takes one method and one --keep."
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=2, help="Timed rounds.")] = 7,
    new_tokens: Annotated[int, typer.Option(min=1, help="Output tokens timed after each prefill.")] = 8,
    naive: Annotated[bool, typer.Option("--naive", help="Also run with eager attention and full attention maps.")] = False,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 2,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N or mps.")] = "cpu",
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write NAME.json, .md and .png (give NAME.json).")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite existing measurements.")] = False,
) -> None:
    """Time, count and weigh a prefill: with all visual tokens, with each method, and the limit no pruning can beat.

    With --pictures and --out, the same command given again goes on where it was interrupted.
    """
    check_match(match)
    if out is not None:
        require_extra("ptp bench --out", "eval", "matplotlib")
    if tuned is not None:
        given = {"--methods": methods != METHODS_ASKED, "--keep": keep != RATIOS_ASKED, "--match": match != "final"}
        found = settings_from(tuned, f"the preset {preset}" if model is None else model, given)
        methods, keep = found.name, repr(found.keep_ratio)
    variants, ratios = parse_variants(methods), parse_ratios(keep)
    for ratio in ratios:
        check_keep_ratio(ratio)
    kinds = None if pictures is None else parse_kinds(pictures)
    chosen = None if kinds is None else (check_single("methods", variants), check_single("keep", ratios))
    check_results(out, force or kinds is not None, (".json", ".md", ".png"))
    where = parse_device(device)
    number = parse_dtype(dtype, where)
    torch.set_num_threads(threads)
    built, processor = (build(preset, number, where), None) if model is None else load(model, device=where, dtype=number)
    console, name = Console(), preset if model is None else model
    size = sum(parameter.numel() for parameter in built.parameters())
    about = {"model": name, "device": _device_name(where), "dtype": str(number).removeprefix("torch."), "parameters": size}
    about |= {"attention": built.config._attn_implementation, "rounds": rounds, "threads": threads}
    if kinds is not None and chosen is not None:
        turns = {kind: _turn(preset if model is None else None, built, processor, tiles, draw(kind)) for kind in kinds}
        about |= {"method": chosen[0].name, "keep": chosen[1], "largest number of tiles": tiles, "pictures": list(kinds)}
        _first_token(console, built, turns, chosen[0].pruner(chosen[1]), rounds, out, force, about)
        return
    prompt = _prompt(
        preset if model is None else None, built, processor, tiles, width, [variant.pruner(0.5) for variant in variants]
    )
    told = told_ratios(variants, ratios, match, len(prompt.adapter.layers), console)
    entries = [(variant, ratio, told[variant.name, ratio]) for ratio in ratios for variant in variants]
    bars = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*bars, console=console, transient=True) as progress:
        runs = progress.add_task("Prefill and decode", total=None)
        rows = compete(
            prompt,
            [(variant, ratio, given) for variant, ratio, given in entries if given is not None],
            rounds=rounds,
            new_tokens=new_tokens,
            naive=naive,
            total=lambda steps: progress.update(runs, total=steps),
            advance=lambda: progress.advance(runs),
        )
        costs = []
        if isinstance(prompt.adapter, InternVLAdapter):  # pictures of any size are made up for its tiles only
            growing = progress.add_task("Selection", total=len(variants) * len(TILE_COUNTS))
            costs = selection_costs(built, variants, ratios[0], TILE_COUNTS, lambda: progress.advance(growing))
    tokens = f"{prompt.visual_tokens:,} visual tokens, {prompt.structure_tokens:,} line ends and tile markers"
    title = f"{name}, {size / 1e6:,.0f} M parameters, {tokens}, {rounds} rounds, medians in ms"
    console.print(title, highlight=False)
    for kind, lines in tables(rows).items():
        table = Table(box=SIMPLE_HEAD, show_edge=False, padding=0)
        for head in HEADS[kind]:
            table.add_column(head, justify="left" if head == "method" else "right", no_wrap=head != "method")
        for line in lines:
            table.add_row(*line)
        console.print(table)
    if out is not None:
        about |= {"tiles": len(prompt.pictures["pixel_values"])} if costs else {"picture": f"{width} x {width * 3 // 4}"}
        data = {"rows": [dataclasses.asdict(row) for row in rows], "selection": [dataclasses.asdict(cost) for cost in costs]}
        write_results(out, f"Speed and memory: {name}", markdown(rows, costs, ratios[0]), data, about)
        write_whole(out.with_suffix(".png"), lambda path: plot(rows, costs, path))
        console.print(f"Wrote {out} and its .md and .png.", highlight=False, markup=False)


def _first_token(
    console: Console, model: Any, turns: dict[str, Turn], pruner: Pruner, rounds: int, out: Path | None, force: bool, about: Any
) -> None:
    """Measure, print and write the time to the first token of pictures; what `out` has of the same is gone on with."""
    found = _measured_before(out, about) if out is not None and out.exists() and not force else {}

    def write(found: dict[str, Measured]) -> None:
        if out is not None:
            text = f"{markdown_table(FIRST_TOKEN_HEADS, table(found))}\n\n{NOTES}\n"
            data = {"pictures": {kind: dataclasses.asdict(one) for kind, one in found.items()}}
            write_results(out, f"Time to the first token: {about['model']}", text, data, about)
            write_whole(out.with_suffix(".png"), lambda path: plot_first_token(found, path))

    bars = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*bars, console=console, transient=True) as progress:
        task = progress.add_task("First token", total=rounds * len(turns))

        def advance(found: dict[str, Measured]) -> None:
            write({kind: one for kind, one in found.items() if one.rest})
            progress.advance(task)

        measure(model, turns, pruner, found, rounds, advance)
    shown = Table(box=SIMPLE_HEAD, show_edge=False, padding=0)
    for head in FIRST_TOKEN_HEADS:
        shown.add_column(head, justify="left" if head == "picture" else "right")
    for line in table(found):
        shown.add_row(*line)
    console.print(shown)
    if out is not None:
        console.print(f"Wrote {out} and its .md and .png.", highlight=False, markup=False)


def _measured_before(out: Path, about: dict[str, Any]) -> dict[str, Measured]:
    """What an interrupted run of the same command has measured.

    Raises:
        ValueError: the file is of something else.
    """
    try:
        before = json.loads(out.read_text())
        same = {name: before["about"][name] for name in about} == about
        found = {kind: Measured(**one) for kind, one in before["pictures"].items()}
    except (ValueError, KeyError, TypeError):
        same = False
    if not same:
        raise ValueError(
            f"Output {str(out)!r} has no measurements of this. Pass --force to overwrite it, or choose another name."
        )
    return found


def _turn(preset: str | None, model: Any, processor: Any, tiles: int, picture: Image.Image) -> Turn:
    """A question about a picture, for any family; InternVL presets cut it as InternVL does, into `tiles` at most."""
    if preset in FAMILY_PRESETS:
        family, processor = FAMILY_PRESETS[preset], FAMILY_PRESETS[preset].processor(FAMILY_SCALE)
        return picture_turn(model, processor, lambda *asked: family.encode(processor, [([asked[0]], asked[1])]), picture)
    if processor is None:
        return made_up_turn(model.config, cut(picture, model.config.vision_config.image_size[0], max(tiles - 1, 1)))
    return picture_turn(model, processor, lambda *asked: encode_prompt(processor, [asked[0]], asked[1], model), picture)


def _prompt(preset: str | None, model: Any, processor: Any, tiles: int, width: int, pruners: Sequence[Pruner]) -> Prompt:
    """What is prefilled: made-up ids for InternVL; for other families a picture, through the processor."""
    if preset in FAMILY_PRESETS:
        family, processor = FAMILY_PRESETS[preset], FAMILY_PRESETS[preset].processor(FAMILY_SCALE)
        return picture_prompt(
            model, processor, lambda *asked: family.encode(processor, [([asked[0]], asked[1])]), width, pruners
        )
    if processor is None or isinstance(adapter_for(model), InternVLAdapter):
        return make_prompt(model, tiles, pruners)
    return picture_prompt(
        model, processor, lambda *asked: encode_prompt(processor, [asked[0]], asked[1], model), width, pruners
    )


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
