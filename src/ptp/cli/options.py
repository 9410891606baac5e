"""What several subcommands share: building a pruner, checking output paths, the table of answers."""

import hashlib
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .. import __version__
from ..bench.measure import Comparison
from ..methods import METHODS
from ..methods.parsing import Variant, parse_variant, settings_of
from ..pruner import Pruner
from ..report import Answer
from ..tiny import WEIGHTS
from ..tuning.tuned import Tuned, read_tuned

MATCHES = ("final", "average")


def build_pruner(method: str, keep_ratio: float, **flags: Any) -> Pruner:
    """The method that --method names, with or without settings, and the settings that have flags of their own.

    Args:
        flags: Their values; None was not given.

    Raises:
        ValueError: the method is unknown, or a setting is not one of its own, wrong, or given both ways.
    """
    variant = parse_variant(method)
    given = {name: value for name, value in flags.items() if value is not None}
    for name in given:
        flag = f"--{name.replace('_', '-')}"
        if name not in settings_of(variant.method):
            raise ValueError(f"{flag} does not apply to method {variant.method!r}. Leave it out.")
        if name in variant.settings:
            raise ValueError(f"{name} is given twice, by {flag} and in --method {method}. Leave one of them out.")
    return METHODS[variant.method](keep_ratio=keep_ratio, **variant.settings, **given)


def parse_ratios(text: str) -> list[float]:
    """Comma-separated keep ratios; ValueError names the one that is none."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"--keep must be numbers in (0, 1] separated by commas, got {text!r}. Try 1.0,0.5,0.2.") from error


def check_output(path: Path | None, force: bool) -> None:
    """Refuse, before any work is done, an output file that exists (without --force) or cannot be written."""
    if path is None:
        return
    check_writable(path)
    if path.exists() and not force:
        raise ValueError(f"Output {str(path)!r} exists. Pass --force to overwrite it, or choose another name.")


def check_writable(path: Path) -> None:
    """Refuse an output file that cannot be written."""
    if path.is_dir():
        raise ValueError(f"Output {str(path)!r} is a directory. Name a file in it.")
    parent = path.resolve().parent
    if not parent.is_dir() or not os.access(parent, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise ValueError(f"Output {str(path)!r} cannot be written. Create its directory or choose another one.")


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside `path`, then move it there: interrupted, the old file stays as it was."""
    handle, name = tempfile.mkstemp(dir=path.resolve().parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        write(Path(name))
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def check_suffix(out: Path, suffixes: Sequence[str]) -> None:
    """Refuse a name of results that does not end in the first of `suffixes`."""
    if out.suffix != suffixes[0]:
        beside = " and ".join([", ".join(suffixes[1:-1]), suffixes[-1]])
        raise ValueError(f"--out must end in {suffixes[0]}, got {str(out)!r}. The {beside} are written beside it.")


def check_results(out: Path | None, force: bool, suffixes: Sequence[str]) -> None:
    """`check_suffix` and, of each file, `check_output`."""
    if out is not None:
        check_suffix(out, suffixes)
        for suffix in suffixes:
            check_output(out.with_suffix(suffix), force)


def check_match(match: str) -> None:
    """Raise ValueError unless `match` is one of the ways to match methods."""
    if match not in MATCHES:
        raise ValueError(f"--match must be one of {', '.join(MATCHES)}, got {match!r}. Choose one of these.")


def told_ratios(
    variants: Iterable[Variant], ratios: Sequence[float], match: str, layers: int, console: Console
) -> dict[tuple[str, float], float | None]:
    """The keep ratio that each method is told for each that is asked for; None, and said so, where it cannot reach it."""
    pairs = [(variant, ratio) for variant in variants for ratio in ratios]
    told = {(v.name, ratio): ratio if match == "final" else v.matched_ratio(ratio, layers) for v, ratio in pairs}
    for (name, ratio), given in told.items():
        if given is None:
            console.print(f"{name} cannot average {ratio:g} of the tokens: it prunes too late. Left out.", highlight=False)
    return told


def write_results(out: Path, title: str, table: str, data: dict[str, Any], about: dict[str, Any]) -> None:
    """Write measurements as NAME.json, and their Markdown table as NAME.md, both with their provenance."""
    about = {**provenance(), **about}
    write_whole(out, lambda path: path.write_text(json.dumps({"about": about, **data}, indent=1) + "\n"))
    write_whole(out.with_suffix(".md"), lambda path: path.write_text(titled(title, table, about)))


def titled(title: str, table: str, about: dict[str, Any]) -> str:
    """A Markdown page: the table, then where its numbers come from."""
    facts = "\n".join(f"- {name}: {value}" for name, value in about.items())
    return f"# {title}\n\n{table}\n{facts}\n"


def provenance() -> dict[str, Any]:
    """What every file of measurements carries: command, date, machine, versions."""
    return {
        "command": "ptp " + " ".join(sys.argv[1:]),
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{_processor_name()}, {torch.get_num_threads()} threads",
        "versions": {"ptp": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
    }


def _processor_name() -> str:
    """The CPU's name where the system tells it, else its architecture."""
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line] if info.exists() else []
    )
    return names[0] if names else platform.machine()


def answer_row(question: str, keep_ratio: float, result: Comparison) -> Answer:
    """The row of a question that was answered both ways."""
    trace = result.trace
    tokens = (trace.visual_tokens, trace.average_tokens, trace.cache_bytes)
    return Answer(question, result.full, result.pruned, keep_ratio, *tokens, result.prefill, result.first_token)


def answer_table(answers: list[Answer]) -> Table:
    """Question, answers, tokens, times and sizes, full -> pruned; narrow enough for 80 columns."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=0)
    table.add_column("Question", overflow="fold")
    table.add_column("Kept", justify="right", no_wrap=True)
    for column in ("Full", "Pruned"):
        table.add_column(column, overflow="fold")
    late = any(a.average_tokens != a.visual_tokens[1] for a in answers)  # tokens leave behind the first layers
    columns = ("First token\nms", "Visual\ntokens", "Avg. over\nlayers", "Prefill\nms", "KV cache\nKiB")
    for column in columns if late else (*columns[:2], *columns[3:]):
        table.add_column(column, justify="right", no_wrap=True)
    previous = None
    for a in answers:
        same, previous = a.question == previous, a.question
        table.add_row(
            "" if same else escape(a.question),
            f"{100 * a.keep_ratio:g} %",
            "" if same else escape(a.full),
            escape(a.pruned),
            _milliseconds(a.first_token),
            "{:,} -> {:,}".format(*a.visual_tokens),
            *([f"{a.average_tokens:,.0f}"] if late else []),
            _milliseconds(a.prefill),
            f"{a.cache_bytes[0] / 1024:,.0f} -> {a.cache_bytes[1] / 1024:,.0f}",
        )
    return table


def model_identity(model: str | None) -> str:
    """A name for the model that changes with its weights and its difficulty."""
    directory = WEIGHTS if model is None else Path(model)
    name = "ptp-tiny" if model is None else model
    if not directory.is_dir():
        return name
    digest = hashlib.sha256()
    for path in sorted([*directory.glob("*.safetensors"), *directory.glob("*.json")]):
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return f"{name} {digest.hexdigest()[:12]}"


def show_table(lines: Sequence[Sequence[str]], console: Console) -> None:
    """Print lines of text, headings first; the method's name stands left, numbers right."""
    heads, *rest = lines
    view = Table(box=SIMPLE_HEAD, show_edge=False, padding=0)
    for column in heads:
        named = column == "method"
        view.add_column(column, justify="left" if named else "right", overflow="fold" if named else "ellipsis")
    for line in rest:
        view.add_row(*line)
    console.print(view)


def refuse_given(flags: dict[str, Any], what: str) -> None:
    """Raise ValueError where a flag that does not go with `what` was given.

    Args:
        flags: Whether each was.
    """
    for flag in [flag for flag, given in flags.items() if given]:
        raise ValueError(f"{flag} does not go with {what}. Leave it out.")


def settings_from(path: Path, model: str | None, given: dict[str, Any]) -> Tuned:
    """What `ptp tune` found, for a command that was given --settings; what speaks against it goes to stderr, a line each.

    Args:
        model: As --model. given: Whether flags that it stands for were given, too.

    Raises:
        ValueError: one was; or as `read_tuned`.
    """
    refuse_given(given, "--settings")
    tuned = read_tuned(path)
    for line in tuned.doubts(model_identity(model)):
        print(f"ptp: {line}", file=sys.stderr)
    return tuned


def _milliseconds(pair: tuple[float, float]) -> str:
    return " -> ".join(f"{1000 * s:,.0f}" if s >= 0.09995 else f"{1000 * s:#.3g}" for s in pair)
