"""The `ptp` command. Nothing heavy is imported before `main` runs, so that Ctrl-C ends it cleanly from the first moment."""

import sys
from typing import NoReturn

INTERRUPTED = 130


def main() -> None:
    """Entry point of `ptp`."""
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
