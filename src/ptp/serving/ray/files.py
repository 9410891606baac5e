"""Files that are there whole or not at all, whatever is killed while they are written."""

import contextlib
import os
import uuid
from collections.abc import Callable
from pathlib import Path

UNFINISHED = ".unfinished-"


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under another name, have it on the disk, then give it its own; the folder exists.

    Raises:
        OSError: it cannot be written; what stood there before still does.
    """
    beside = path.with_name(f"{UNFINISHED}{uuid.uuid4().hex}-{path.name}")
    try:
        write(beside)
        _sync(beside)
        os.replace(beside, path)
        _sync(path.parent)  # the name, too, has to outlast a power cut
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def begin(folder: Path, what: str, most: int) -> bool:
    """Leave a mark that something is begun; False where `most` that began the same before did not come to `end` it."""
    for number in range(most):
        with contextlib.suppress(FileExistsError):
            (folder / f"{UNFINISHED}{what}-{number}").touch(exist_ok=False)
            return True
    return False


def end(folder: Path, what: str) -> None:
    """It came to its end: take the marks away."""
    for path in folder.glob(f"{UNFINISHED}{what}-*"):
        path.unlink(missing_ok=True)


def clear_unfinished(folder: Path) -> None:
    """Remove what an earlier run that was killed left in a folder: marks, and files that were being written."""
    for path in folder.glob(f"{UNFINISHED}*"):
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
