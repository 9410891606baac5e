"""What a run is asked to do, and the folder that it fills."""

import contextlib
import fcntl
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...evaluation.data import count_rows
from ...pruner import Pruner
from .files import write_whole

RUN, LOCK = "run.json", ".lock"
ENGINES = ("transformers", "vllm")
FOOTER = 8
"""Bytes at the end of a parquet file: how long its footer is, and its mark."""


@dataclass(frozen=True)
class Job:
    """A run: everything that a worker needs to know.

    Attributes:
        data: The parquet file. out: The folder of answers; workers see both under these paths.
        rows: Of the file. shard_rows: Of a shard.
        model: Checkpoint directory or hub id; None is the embedded ptp-tiny.
        method: Its key in `METHODS`. pruner: The method, with its settings.
        engine: One of `ENGINES`. engine_args: Further arguments of `vllm.LLM`.
        batch_size: Rows that go through the model together; None is the engine's own choice.
        device, dtype, threads: Of each worker. workers: How many there are.
        settings: What decides the answers, as JSON holds it: of a folder once, and beside every answer.
        versions: Of the packages that do.
    """

    data: Path
    out: Path
    rows: int
    shard_rows: int
    model: str | None
    method: str
    pruner: Pruner
    engine: str = "transformers"
    engine_args: dict[str, Any] = field(default_factory=dict)
    max_new_tokens: int = 64
    batch_size: int | None = None
    device: str = "cpu"
    dtype: str | None = None
    threads: int = 1
    workers: int = 1
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def shards(self) -> int:
        """How many there are."""
        return -(-self.rows // self.shard_rows)

    def size(self, shard: int) -> int:
        """Rows of a shard: all but the last are full."""
        return min(self.shard_rows, self.rows - shard * self.shard_rows)

    def text(self, name: str) -> str:
        """Its settings or versions, as they stand beside every answer."""
        return json.dumps(getattr(self, name), sort_keys=True)


def identity(data: Path) -> dict[str, Any]:
    """What a parquet file is known by: name, rows, size, time of change, and a hash of its footer (every column chunk's place,
    size and statistics). Its pages are not read: it may be larger than one wants to read twice.

    Raises:
        ValueError: it is no parquet file, empty, or lacks a column.
    """
    if data.suffix != ".parquet":
        raise ValueError(f"ptp batch reads parquet files, got {str(data)!r}. Convert it.")
    rows = count_rows(data)
    if not rows:
        raise ValueError(f"{str(data)!r} has no rows. Each row is a question about a picture.")
    about = data.stat()
    with data.open("rb") as file:
        file.seek(-FOOTER, 2)
        length = int.from_bytes(file.read(4), "little")
        file.seek(-FOOTER - length, 2)
        digest = hashlib.sha256(file.read(length)).hexdigest()[:16]
    return {"name": data.name, "rows": rows, "bytes": about.st_size, "changed": about.st_mtime_ns, "footer": digest}


def open_folder(out: Path, run: dict[str, Any]) -> None:
    """Make the folder of a run, or find it as an earlier start of the same run left it.

    Args:
        run: What makes it this run, part by part, as JSON holds it.

    Raises:
        ValueError: it holds something else, or another run's answers.
    """
    place = out / RUN
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out must be a folder, and {str(out)!r} is a file. Choose another one.")
    out.mkdir(parents=True, exist_ok=True)
    if not place.exists():
        strange = sorted(path.name for path in out.iterdir() if not path.name.startswith("."))
        if strange:
            raise ValueError(f"--out must be empty or a run's own, and {str(out)!r} holds {strange[0]!r}. Choose another one.")
        write_whole(place, lambda path: path.write_text(json.dumps(run, indent=1) + "\n"))
        return
    try:
        theirs = dict(json.loads(place.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{str(place)!r} cannot be read. Choose another --out.") from error
    mine, theirs = _flat(json.loads(json.dumps(run))), _flat(theirs)
    for name in [*mine, *(name for name in theirs if name not in mine)]:
        if mine.get(name) != theirs.get(name):
            raise ValueError(
                f"{str(out)!r} was begun with {name} {theirs.get(name)!r}, not {mine.get(name)!r}, and cannot go on with that. "
                "Give the command as it was, or choose another --out."
            )


def _flat(value: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Nested names joined by points."""
    found: dict[str, Any] = {}
    for name, part in value.items():
        found |= _flat(part, f"{before}{name}.") if isinstance(part, dict) else {before + name: part}
    return found


@contextlib.contextmanager
def only_one(out: Path) -> Iterator[None]:
    """Keep other runs out of the folder; a run that is killed lets go of it.

    Raises:
        ValueError: one is at work there.
    """
    with (out / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"Another run is writing to {str(out)!r}. Wait until it has ended, or choose another --out."
            ) from error
        yield
