"""Questions about pictures from a file of one's own: parquet, JSON Lines or CSV."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..pictures import open_picture

SUFFIXES = (".parquet", ".jsonl", ".json", ".csv")
BATCH = 64
"""Rows held at a time."""
IN_PARTS: dict[str, Any] = {"buffer_size": 1 << 20, "pre_buffer": False}
"""How parquet is opened: a column's bytes come so many at a time. pyarrow otherwise takes a whole row group into memory."""


@dataclass(frozen=True)
class Question:
    """One row of a file.

    Attributes:
        number: Of the row, counted from 0.
        pictures: Where they are: paths, or their bytes.
        text: The question. answers: The right answers; empty where none are known.
    """

    number: int
    pictures: tuple[Path | bytes, ...]
    text: str
    answers: tuple[str, ...] = ()

    def open(self) -> list[Image.Image]:
        """Its pictures, upright RGB.

        Raises:
            ValueError: one is missing, damaged, too large or too small.
        """
        return [open_picture(source) for source in self.pictures]


@dataclass(frozen=True)
class BadRow:
    """A row that is no question, and why."""

    number: int
    reason: str


def read_questions(path: Path) -> Iterator[Question | BadRow]:
    """The rows of a file, a few at a time: columns `image` (a path, bytes, or several), `question`, and perhaps `answer` or
    `answers`. Paths count from the file's directory.

    Raises:
        ValueError: it is no such file, empty, or lacks a column; or pyarrow is not installed.
    """
    count = 0
    for number, row in enumerate(_rows(path)):
        count += 1
        try:
            yield question_of(number, row, path.parent)
        except ValueError as error:
            yield BadRow(number, str(error))
    if not count:
        raise ValueError(f"{str(path)!r} has no rows. Each row is a question about a picture.")


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if path.suffix not in SUFFIXES:
        raise ValueError(f"The data must be one of {', '.join(SUFFIXES)}, got {str(path)!r}. Convert it.")
    if not path.exists():
        raise ValueError(f"Data {str(path)!r} does not exist. Check the path.")
    try:
        import pyarrow as pa
    except ImportError as error:
        raise ValueError(
            "Data files are read with pyarrow. Install it with: pip install 'pyramid-token-pruning[data]'"
        ) from error
    try:
        for batch in _batches(path):
            missing = [name for name in ("image", "question") if name not in batch.schema.names]
            if missing:
                names = ", ".join(batch.schema.names)
                raise ValueError(f"{str(path)!r} must have the columns image and question, and has {names}. Rename them.")
            yield from batch.to_pylist()
    except pa.ArrowException as error:
        raise ValueError(
            f"{str(path)!r} cannot be read as {path.suffix[1:]} ({str(error).splitlines()[0]}). Check it."
        ) from error


def _batches(path: Path) -> Iterator[Any]:
    import pyarrow.csv
    import pyarrow.json
    import pyarrow.parquet

    if path.stat().st_size == 0:
        return
    if path.suffix == ".parquet":
        yield from pyarrow.parquet.ParquetFile(path, **IN_PARTS).iter_batches(BATCH)
    elif path.suffix == ".csv":
        strings = dict.fromkeys(("image", "question", "answer", "answers"), pyarrow.string())  # "007" stays what it is
        yield from pyarrow.csv.open_csv(path, convert_options=pyarrow.csv.ConvertOptions(column_types=strings))
    else:
        yield from pyarrow.json.open_json(path)


def question_of(number: int, row: dict[str, Any], folder: Path) -> Question:
    """A row as a question; `folder` is where paths count from.

    Raises:
        ValueError: it is none.
    """
    text = row["question"]
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"question must be a text, got {text!r}")
    images = row["image"] if isinstance(row["image"], list) else [row["image"]]
    given = row.get("answers") if row.get("answers") is not None else row.get("answer")
    answers = given if isinstance(given, list) else [] if given is None else [given]
    return Question(number, tuple(_source(image, folder) for image in images), text, tuple(map(str, answers)))


def _source(image: Any, folder: Path) -> Path | bytes:
    """A path, bytes, or a struct of both as datasets' Image column has it."""
    if isinstance(image, dict):
        image = image.get("bytes") or image.get("path")
    if isinstance(image, bytes):
        return image
    if not isinstance(image, str) or not image:
        raise ValueError(f"image must be a path or the bytes of a picture, got {image!r}")
    return folder / image


def count_rows(path: Path) -> int:
    """How many rows a file has; of parquet without reading them. Errors as `read_questions`."""
    if path.suffix != ".parquet" or not path.exists() or path.stat().st_size == 0:
        return sum(1 for _ in _rows(path))
    next(_rows(path), None)  # which says what is wrong with it
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(path).metadata.num_rows
