"""The questions that `ptp tune` asks: read, put in a random order, and split into two halves by their pictures."""

import hashlib
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from ..evaluation.data import BadRow, Question, read_questions

GENERIC = (
    "What is in this picture? Answer briefly.",
    "What can be read in this picture?",
    "What is in the background of this picture?",
)
"""Asked about pictures that come without questions."""
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


@dataclass(frozen=True)
class Halves:
    """Questions to choose on, and others, about other pictures, to report on.

    Attributes:
        groups: What each row's pictures are called, by its number: the same for rows that share a picture.
        bad: Rows that are no questions.
    """

    choosing: list[Question]
    reporting: list[Question]
    groups: dict[int, int]
    bad: list[BadRow]

    @property
    def several(self) -> bool:
        """Whether there are pictures with more than one question."""
        return len(set(self.groups.values())) < len(self.groups)


def questions_in(data: Path, limit: int | None) -> tuple[list[Question], list[BadRow]]:
    """Rows of a file of questions, `limit` of them at most, and those that are none. Errors as `read_questions`."""
    good, bad = list[Question](), list[BadRow]()
    for row in islice(read_questions(data), limit):
        if isinstance(row, BadRow):
            bad.append(row)
        else:
            good.append(row)
    return good, bad


def questions_about(folder: Path, limit: int | None) -> list[Question]:
    """The questions of `GENERIC` about every picture of a directory, picture after picture; `limit` questions at most.

    Raises:
        ValueError: it is no directory, or has no pictures.
    """
    if not folder.is_dir():
        raise ValueError(f"--pictures must be a directory of pictures, got {str(folder)!r}. Name one.")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in ENDINGS)
    if not paths:
        raise ValueError(f"{str(folder)!r} has no pictures ({', '.join(ENDINGS)}). Put some in, or name another directory.")
    pairs = [(path, text) for path in paths for text in GENERIC][:limit]
    return [Question(number, (path,), text) for number, (path, text) in enumerate(pairs)]


def name_of(data: Path, questions: Sequence[Question]) -> str:
    """A name for the data that changes with what is in it: of a file its bytes, of a directory its pictures."""
    digest = hashlib.sha256()
    paths = sorted({p for question in questions for p in question.pictures if isinstance(p, Path)}) if data.is_dir() else [data]
    for path in paths:
        digest.update(path.name.encode() if data.is_dir() else b"")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"{data.name} {digest.hexdigest()[:12]}"


def halves(questions: Iterable[Question], bad: list[BadRow]) -> Halves:
    """Split questions so that no picture is in both halves. The order is random, and always the same.

    Raises:
        ValueError: there are not two pictures.
    """
    rows = list(questions)
    groups = _groups(rows)
    order = sorted(set(groups.values()))
    random.Random(0).shuffle(order)
    if len(order) < 2:
        raise ValueError(
            f"Tuning needs at least two different pictures, one to choose on and one to report on, got {len(order)}. Add some."
        )
    half = (len(order) + 1) // 2
    rank = {group: place for place, group in enumerate(order)}
    ordered = _dealt(rows, groups, rank)
    choosing = [row for row in ordered if rank[groups[row.number]] < half]
    return Halves(choosing, [row for row in ordered if rank[groups[row.number]] >= half], groups, bad)


def _dealt(rows: list[Question], groups: dict[int, int], rank: dict[int, int]) -> list[Question]:
    """One question of every picture, then a second one, and so on: the first questions are about different pictures."""
    turn: dict[int, int] = {}
    keys = {}
    for row in rows:
        group = groups[row.number]
        turn[group] = turn.get(group, -1) + 1
        keys[row.number] = (turn[group], rank[group])
    return sorted(rows, key=lambda row: keys[row.number])


def _groups(rows: list[Question]) -> dict[int, int]:
    """What each row belongs to, by its number: rows that share a picture, directly or by others, belong together."""
    parent = list(range(len(rows)))

    def root(place: int) -> int:
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    seen: dict[str, int] = {}
    for place, row in enumerate(rows):
        for picture in row.pictures:
            key = hashlib.sha256(picture).hexdigest() if isinstance(picture, bytes) else str(picture.resolve())
            parent[root(place)] = root(seen.setdefault(key, place))
    return {row.number: rows[root(place)].number for place, row in enumerate(rows)}
