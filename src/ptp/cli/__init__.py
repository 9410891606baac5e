"""The `ptp` command. Nothing heavy is imported before `main` runs, so that Ctrl-C ends it cleanly from the first moment."""

import logging
import os
import sys
from typing import NoReturn

from .. import __version__

INTERRUPTED = 130
QUIET = {"TORCH_CPP_LOG_LEVEL": "ERROR", "KINETO_LOG_LEVEL": "99"}
"""torch reads these when it is loaded: its profiler, which measures memory, talks on stderr otherwise."""
CHATTY = ("torchao", "torch.utils._pytree")
"""Where torchao is installed, transformers loads it, and it tells of every part of it that does not fit this machine."""


def main() -> None:
    """Entry point of `ptp`."""
    if sys.argv[1:2] == ["--version"]:  # here, because what is imported below takes seconds
        print(f"ptp {__version__}")
        return
    for name, quiet in QUIET.items():
        os.environ.setdefault(name, quiet)
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        from .app import run_command

        run_command()
    except KeyboardInterrupt:
        stop("interrupted", INTERRUPTED)


def stop(message: str, code: int = 2) -> NoReturn:
    """End with one line on stderr."""
    if message:
        print("ptp: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(code)
