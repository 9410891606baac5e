"""The journal of an evaluation: a line for every finished row, on disk before the next one starts."""

import errno
import json
from pathlib import Path
from typing import Any

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def append_line(path: Path, row: dict[str, Any]) -> None:
    """Add a line of JSON to a file.

    Raises:
        OSError: it cannot be written, because the disk is full, say; what stood there before still does.
    """
    try:
        with path.open("a") as file:
            file.write(json.dumps(row, separators=(",", ":")) + "\n")
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        told = f"{error.strerror}. What was finished is kept: make room, and give the same command again"
        raise OSError(error.errno, told, str(path)) from error


class Journal:
    """JSON Lines: the settings first, then the rows as they come. A run that was stopped at any moment goes on from it.

    Attributes:
        rows: What an earlier run of the same command finished, in the order of the file.
    """

    def __init__(self, path: Path, settings: dict[str, Any], force: bool = False) -> None:
        """Read the file; nothing is written before the first row is finished.

        Args:
            settings: Of the run, as JSON can hold them.
            force: Start again, whatever is there.

        Raises:
            ValueError: the file is no journal, or of a run with other settings.
        """
        self.path, self.settings = path, settings
        self.rows, self._valid = ([], 0) if force or not path.exists() else self._read(path.read_bytes())
        self._begun = False

    def append(self, row: dict[str, Any]) -> None:
        """Add a finished row. Errors as `append_line`."""
        if not self._begun:
            if self._valid:
                with self.path.open("r+b") as file:
                    file.truncate(self._valid)  # an earlier run may have ended in the middle of a line
            else:
                self.path.write_text("")
                append_line(self.path, {"settings": self.settings})
            self._begun = True
        append_line(self.path, row)

    def _read(self, text: bytes) -> tuple[list[dict[str, Any]], int]:
        """The whole lines, and how many bytes they are."""
        valid = text.rfind(b"\n") + 1
        if not valid and b"settings".startswith(text[2:10]):  # nothing, or a first line that was not finished
            return [], 0
        try:
            head, *rows = [json.loads(line) for line in text[:valid].splitlines()]
            theirs = dict(head["settings"])
        except (ValueError, KeyError, TypeError) as error:
            name = str(self.path)
            raise ValueError(f"{name!r} is not the journal of an evaluation. Pass --force to overwrite it.") from error
        for name in self.settings:
            if theirs.get(name) != self.settings[name]:
                raise ValueError(
                    f"{str(self.path)!r} was made with {name} {theirs.get(name)!r}, not {self.settings[name]!r}, and cannot be "
                    "resumed. Choose another --out, or pass --force to overwrite it."
                )
        return rows, valid
