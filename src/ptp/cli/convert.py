"""`ptp convert`: a checkpoint in its authors' format to the Hugging Face format."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .. import convert as conversion


def convert(
    source: Annotated[Path, typer.Argument(metavar="INPUT_DIR", help="InternVL checkpoint in its authors' format.")],
    target: Annotated[Path, typer.Argument(metavar="OUTPUT_DIR", help="New directory for the Hugging Face format.")],
) -> None:
    """Convert an InternVL2, 2.5 or 3 checkpoint in its authors' format to the Hugging Face format; none of its code is run."""
    console = Console()
    with console.status("Reading") as status:
        conversion.convert(source, target, lambda step: status.update(step))
    console.print(
        f"Wrote {target}. Load it with ptp.load({str(target)!r}), or ptp run --model {target}.", highlight=False, markup=False
    )
