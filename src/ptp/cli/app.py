"""The `ptp` command. Every mistake of the user's is one line on stderr and exit code 2."""

import sys
import warnings
from typing import NoReturn

import typer

from . import bench, demo, evaluate, run

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Training-free pruning of visual tokens for vision-language models.",
)
app.command("run")(run.run)
app.command("demo")(demo.demo)
app.command("eval")(evaluate.evaluate)
app.command("bench")(bench.bench)


def main() -> None:
    """Entry point of `ptp`."""
    import torch
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=UserWarning)
    try:
        code = app(standalone_mode=False)
    except (typer.Abort, KeyboardInterrupt):
        _stop("interrupted", 130)
    except torch.OutOfMemoryError:
        _stop("out of memory. Use a smaller picture or model, --dtype bfloat16, or a lower --keep.", 1)
    except (ValueError, OSError) as error:
        _stop(str(error))
    except Exception as error:
        # Usage errors: newer typers carry a click of their own, older ones use the installed one. Both say it this way.
        if not hasattr(error, "format_message"):
            raise
        text = error.format_message()  # empty where the help was asked for by passing nothing
        _stop(text and f"{text} See ptp --help.")
    if code == 130:  # how typer reports Ctrl-C inside a command
        _stop("interrupted", 130)
    sys.exit(code if isinstance(code, int) else 0)


def _stop(message: str, code: int = 2) -> NoReturn:
    if message:
        print("ptp: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(code)
