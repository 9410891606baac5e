"""The subcommands, and what becomes of their errors: every mistake of the user's is one line and exit code 2."""

import sys
import warnings

import torch
import typer
from transformers.utils import logging

from . import INTERRUPTED, batch, bench, convert, demo, evaluate, methods, models, run, stop, tune, ui

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Training-free pruning of visual tokens for vision-language models.",
    epilog="ptp --version prints the version.",
)
app.command("run")(run.run)
app.command("demo")(demo.demo)
app.command("eval")(evaluate.evaluate)
app.command("bench")(bench.bench)
app.command("tune")(tune.tune)
app.command("methods")(methods.methods)
app.command("models")(models.models)
app.command("convert")(convert.convert)
app.command("batch")(batch.batch)
app.command("ui")(ui.ui)


def run_command() -> None:
    """Run the subcommand that the command line names; exits, or raises KeyboardInterrupt."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=UserWarning)
    try:
        code = app(standalone_mode=False)
    except typer.Abort:
        raise KeyboardInterrupt from None
    except torch.OutOfMemoryError:
        stop("out of memory. Use a smaller picture or model, --dtype bfloat16, or a lower --keep.", 1)
    except (ValueError, OSError) as error:
        stop(str(error))
    except Exception as error:
        # Usage errors: newer typers carry a click of their own, older ones use the installed one. Both say it this way.
        if not hasattr(error, "format_message"):
            raise
        text = error.format_message()  # empty where the help was asked for by passing nothing
        stop(text and f"{text} See ptp --help.")
    if code == INTERRUPTED:  # how typer reports Ctrl-C inside a command
        raise KeyboardInterrupt
    sys.exit(code if isinstance(code, int) else 0)
