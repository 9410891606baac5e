"""The rows of a parquet file in numbered shards, and the files of their answers.

Shard k is rows k N to (k + 1) N - 1 of the file. A shard is finished when its file of answers is there; its errors are written
before, so that a finished shard lacks nothing.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ...evaluation.data import BATCH, IN_PARTS
from .files import clear_unfinished, write_whole
from .job import Job

PARTS, ERRORS = "parts", "errors"
COLUMNS = ("image", "question", "id")
RUNS = 1000
"""Into about so many runs of rows the file is cut at most."""
LARGEST = 1 << 30
"""Bytes of a shard: it travels in one piece."""


@dataclass(frozen=True)
class Finished:
    """A row that was answered.

    Attributes:
        row: Its number. visual_tokens: Of its pictures, (before, after).
    """

    row: int
    answer: str
    visual_tokens: tuple[int, int]


def part_name(shard: int) -> str:
    """Of a shard's file, both of its answers and of its errors."""
    return f"part-{shard:08d}.parquet"


def prepare(out: Path) -> None:
    """Make the folders, and clear what was being written when an earlier run ended."""
    for name in (PARTS, ERRORS):
        (out / name).mkdir(exist_ok=True)
        clear_unfinished(out / name)


def is_finished(out: Path, shard: int) -> bool:
    """Whether its answers are there."""
    return (out / PARTS / part_name(shard)).exists()


def unfinished(job: Job) -> list[int]:
    """The shards that remain, in order."""
    done = bytearray(job.shards)
    with os.scandir(job.out / PARTS) as entries:
        for entry in entries:
            number = entry.name.removeprefix("part-").removesuffix(".parquet")
            if number.isdigit() and int(number) < job.shards:
                done[int(number)] = 1
    return [shard for shard, finished in enumerate(done) if not finished]


def count_errors(out: Path) -> tuple[int, str]:
    """How many rows were bad, and the first of them with its reason."""
    count, first = 0, ""
    for path in sorted((out / ERRORS).glob("part-*.parquet")):
        if not first:
            row = pq.read_table(path).slice(0, 1).to_pylist()[0]
            first = f"row {row['row']}: {row['reason']}"
        count += pq.read_metadata(path).num_rows
    return count, first


def plan(job: Job, todo: Sequence[int]) -> list[dict[str, Any]]:
    """The runs of row groups that are read one after the other, with those of `todo` that begin in each.

    Returns:
        Of each run with something to do: `group`, where to begin to read; `row`, the first there; `todo`, ascending.
    """
    about = pq.read_metadata(job.data)
    least = max(4 * job.shard_rows, job.rows // RUNS)
    starts, row, end = [(0, 0)], 0, 0
    for group in range(about.num_row_groups):
        if row - starts[-1][1] >= least:
            starts.append((group, row))
        row += about.row_group(group).num_rows
    found, place = [], 0
    for number, (group, first) in enumerate(starts):
        end = starts[number + 1][1] if number + 1 < len(starts) else job.rows
        own = place
        while own < len(todo) and todo[own] * job.shard_rows < end:
            own += 1
        if own > place:
            found.append({"group": group, "row": first, "todo": list(todo[place:own])})
        place = own
    return found


def read_shards(job: Job, group: int, row: int, todo: Sequence[int]) -> Iterator[tuple[int, pa.Table]]:
    """Shards of a run, one after the other; in memory is one at a time. Arguments as `plan` has them.

    Which shards come depends on the arguments alone, not on what has been finished meanwhile: Ray, where it reads again after a
    loss, counts on the same pieces in the same order.
    """
    with pq.ParquetFile(job.data, **IN_PARTS) as file:
        columns = [name for name in COLUMNS if name in file.schema_arrow.names]
        groups = list(range(group, file.metadata.num_row_groups))
        wanted = iter(todo)
        shard, parts = next(wanted), list[pa.RecordBatch]()
        for batch in file.iter_batches(min(job.shard_rows, BATCH), row_groups=groups, columns=columns):
            after = row + batch.num_rows
            while True:
                first, last = shard * job.shard_rows, shard * job.shard_rows + job.size(shard)
                if (start := max(first, row)) < (stop := min(last, after)):
                    parts.append(batch.slice(start - row, stop - start))
                if after < last:
                    break
                yield shard, pa.Table.from_batches(parts)
                parts, following = [], next(wanted, None)
                if following is None:
                    return
                shard = following
            row = after


def pack(shard: int, rows: pa.Table) -> pa.Table:
    """A shard as one row, which nothing on the way takes apart.

    Raises:
        ValueError: it is larger than travels in one piece.
    """
    if rows.nbytes > LARGEST:
        raise ValueError(
            f"A shard must be at most {LARGEST >> 20} MiB, and shard {shard} has {rows.nbytes >> 20}. Lower --shard-rows, in "
            "another --out."
        )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    return _packed(shard, sink.getvalue().to_pybytes(), "")


def refusal(problem: str) -> pa.Table:
    """What comes instead of a shard that cannot be read."""
    return _packed(-1, b"", problem)


def _packed(shard: int, rows: bytes, problem: str) -> pa.Table:
    columns = {"shard": pa.array([shard]), "rows": pa.array([rows], pa.large_binary()), "problem": pa.array([problem])}
    return pa.table(columns)


def unpack(packed: pa.Table) -> Iterator[tuple[int, pa.Table | None, str]]:
    """What `pack` or `refusal` made, of each row: (shard, its rows, problem); where there is a problem, no rows."""
    for shard, rows, problem in zip(*(packed[name] for name in ("shard", "rows", "problem")), strict=True):
        said = problem.as_py()
        yield shard.as_py(), None if said else pa.ipc.open_stream(rows.as_buffer()).read_all(), said


def write_shard(job: Job, shard: int, rows: pa.Table, answers: Sequence[Finished], bad: dict[int, str]) -> None:
    """Write the files of a finished shard, each whole or not at all; again, the same.

    Args:
        rows: Its rows. answers: Those that were answered, in order. bad: The reasons of the others, by number.

    Raises:
        OSError: they cannot be written.
    """
    first = shard * job.shard_rows
    ids = rows["id"] if "id" in rows.column_names else pa.array(range(first, first + len(rows)))

    def table(numbers: list[int], columns: dict[str, Any]) -> pa.Table:
        own = ids.take(pa.array([number - first for number in numbers], pa.int64()))
        return pa.table({"id": own, "row": pa.array(numbers, pa.int64()), **columns})

    place = job.out / ERRORS / part_name(shard)
    if bad:
        reasons = table(sorted(bad), {"reason": pa.array([bad[number] for number in sorted(bad)], pa.string())})
        write_whole(place, lambda path: pq.write_table(reasons, path))
    else:
        place.unlink(missing_ok=True)  # of a worker that was killed before it wrote the answers: what it missed is there now
    constant = {"settings": job.text("settings"), "versions": job.text("versions")}
    found = table(
        [one.row for one in answers],
        {
            "answer": pa.array([one.answer for one in answers], pa.string()),
            "visual_tokens": pa.array([one.visual_tokens[0] for one in answers], pa.int64()),
            "visual_tokens_kept": pa.array([one.visual_tokens[1] for one in answers], pa.int64()),
            **{name: pa.array([text] * len(answers), pa.string()) for name, text in constant.items()},
        },
    )
    write_whole(job.out / PARTS / part_name(shard), lambda path: pq.write_table(found, path))
