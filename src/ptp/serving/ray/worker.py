"""A worker of the pool: one model, one shard at a time."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from PIL import Image

from ...errors import UnsupportedModelError
from ...evaluation.data import question_of
from . import engines, files, shards
from .job import Job

DEATHS = 5
"""So many workers may die over one shard, or in a row while they load the model: Ray itself would try for ever."""
MEMORY = "Is there memory for so many workers? Lower --workers or --batch-size; what was finished is kept."


class Worker:
    """An actor of Ray Data's pool.

    It never raises: what is wrong for all rows comes back as a `problem`, in words, since an exception that crosses processes
    arrives wrapped in tracebacks.
    """

    def __init__(self, job: Job) -> None:
        self.job, self.problem, self.marks = job, "", job.out / shards.PARTS
        self.known: engines.Asked | None = None
        try:
            if not files.begin(self.marks, "load", DEATHS + job.workers):
                raise ValueError(f"workers died {DEATHS} times while they loaded the model. {MEMORY}")
            self.engine = engines.build(job)
            files.end(self.marks, "load")
        except Exception as error:
            self.problem = _said(error)

    def __call__(self, packed: pa.Table) -> pa.Table:
        """Finish shards.

        Args:
            packed: As `shards.pack` makes them.

        Returns:
            A row for each: `shard`, and `problem`, empty where its files are written.
        """
        numbers, problems = [], []
        for shard, rows, problem in shards.unpack(packed):
            numbers.append(shard)
            problems.append(problem or self.problem or self._finish(shard, rows))
        return pa.table({"shard": pa.array(numbers, pa.int64()), "problem": pa.array(problems, pa.string())})

    def _finish(self, shard: int, rows: Any) -> str:
        """Answer a shard and write its files; why not, where that cannot be."""
        if shards.is_finished(self.job.out, shard):
            return ""  # Ray gave it to a worker that died after the last step
        what = f"answer-{shard:08d}"
        try:
            if not files.begin(self.marks, what, DEATHS):
                return f"{DEATHS} workers died while they answered {self._rows(shard)}. {MEMORY}"
            answers, bad, unexpected = self._answer(shard * self.job.shard_rows, rows.to_pylist())
            if unexpected and not self._answers_still():
                return f"the model does not answer any more: {unexpected} (in {self._rows(shard)}). What was finished is kept."
            shards.write_shard(self.job, shard, rows, answers, bad)
            files.end(self.marks, what)
        except Exception as error:
            return _said(error)
        return ""

    def _answers_still(self) -> bool:
        """Whether the engine still answers what it has answered once: then it is the rows that are to blame."""
        if self.known is None:
            return False
        try:
            self.engine.answer([self.known])
        except Exception:
            return False
        return True

    def _rows(self, shard: int) -> str:
        first = shard * self.job.shard_rows
        return f"rows {first} to {first + self.job.size(shard) - 1}"

    def _answer(self, first: int, rows: Sequence[dict[str, Any]]) -> tuple[list[shards.Finished], dict[int, str], str]:
        """The answers, the reasons of bad rows, and the newest of these that no row is known to be to blame for."""
        bad: dict[int, str] = {}
        found: list[shards.Finished] = []
        asked: list[tuple[int, engines.Asked]] = []
        unexpected = ""

        def ask() -> None:
            nonlocal unexpected
            for numbers, answers, error in engines.apart_where_needed(self.engine, asked):
                if error is None:
                    self.known = self.known or next(one for number, one in asked if number == numbers[0])
                    found.extend(
                        shards.Finished(number, one.text, one.visual_tokens)
                        for number, one in zip(numbers, answers, strict=True)
                    )
                else:
                    bad[numbers[0]] = _said(error)
                    unexpected = unexpected if isinstance(error, ValueError) else _said(error)
            asked.clear()

        for number, row in enumerate(rows, first):
            try:
                asked.append((number, self._open(number, row)))
            except ValueError as error:
                bad[number] = str(error)
            if len(asked) == self.engine.together:
                ask()
        if asked:
            ask()
        return found, bad, unexpected

    def _open(self, number: int, row: dict[str, Any]) -> tuple[list[Image.Image], str]:
        question = question_of(number, row, self.job.data.parent)
        if not question.pictures:
            raise ValueError("image must be a picture or several, got an empty list")
        return question.open(), question.text


def _said(error: BaseException) -> str:
    """An error in one line; of what is no message to users, the kind too."""
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError | UnsupportedModelError) else f"{type(error).__name__}: {text}"
