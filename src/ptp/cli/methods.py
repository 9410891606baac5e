"""`ptp methods`: what there is to choose from."""

import sys

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ..methods import METHODS
from ..pruner import Pruner

DEPTH = 32
"""Layers of the language model that the stages are shown for."""


def methods() -> None:
    """List the pruning methods: what each does, where tokens leave, what it looks at."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=0)
    table.add_column("Method", no_wrap=True)
    table.add_column("What it does")
    table.add_column(f"Leave at layers\n(of {DEPTH})", justify="right")
    table.add_column("Attention\nread", no_wrap=True)
    for name, method in METHODS.items():
        pruner = method()
        stages = ", ".join(str(stage.layer) for stage in pruner.stages(DEPTH))
        table.add_row(name, describe(method), stages, " + ".join(_signals(pruner)) or "-")
    Console().print(table)
    Console().print("Use one with --method NAME, or as ptp.METHODS[NAME](keep_ratio=...).", highlight=False, markup=False)


def describe(method: type[Pruner]) -> str:
    """The first line of a method's module."""
    return (sys.modules[method.__module__].__doc__ or "").strip().splitlines()[0]


def _signals(pruner: Pruner) -> list[str]:
    reads = pruner.reads(DEPTH)
    return ["vision"] * bool(reads.vision) + ["text"] * (reads.probe is not None)
