"""Files of one's own questions: what is read, and what is wrong with them in one line."""

import io
import json

import pytest
from conftest import picture

from ptp.evaluation.data import BadRow, Question, read_questions

pa = pytest.importorskip("pyarrow")


def png() -> bytes:
    out = io.BytesIO()
    picture(0, (1, 1)).save(out, "PNG")
    return out.getvalue()


def write(path, rows: list[dict]):
    """The rows as a parquet, JSON Lines or CSV file."""
    import pyarrow.csv
    import pyarrow.parquet

    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        table = pa.Table.from_pylist(rows)
        (pyarrow.parquet.write_table if path.suffix == ".parquet" else pyarrow.csv.write_csv)(table, path)
    return path


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".csv"])
def test_rows_are_questions(suffix, tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    rows = [{"image": "a.png", "question": f"What is {n}?", "answer": f"00{n}"} for n in range(70)]
    found = list(read_questions(write(tmp_path / f"data{suffix}", rows)))
    assert [q.text for q in found] == [row["question"] for row in rows]
    assert [q.answers for q in found] == [(row["answer"],) for row in rows], "and 001 is no number"
    assert [q.number for q in found] == list(range(70)) and found[0].open()[0].size == (112, 112)


def test_pictures_are_bytes_structs_or_several(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    cases = [png(), {"bytes": png(), "path": "elsewhere.png"}, {"bytes": None, "path": "a.png"}]
    for n, image in enumerate(cases):
        rows = [{"image": image, "question": "What?", "answers": ["x", "y"]}]
        (question,) = read_questions(write(tmp_path / f"{n}.parquet", rows))
        assert question.answers == ("x", "y") and [p.size for p in question.open()] == [(112, 112)]
    rows = [{"image": [png(), png()], "question": "Which?"}]
    (question,) = read_questions(write(tmp_path / "several.parquet", rows))
    assert len(question.open()) == 2 and question.answers == ()


def test_bad_rows_say_why_and_the_others_are_read(tmp_path):
    rows = [
        {"image": "a.png", "question": "What?"}, {"image": None, "question": "What?"}, {"image": "a.png", "question": " "},
        {"image": "a.png", "question": "Which?"},
    ]  # fmt: skip
    found = list(read_questions(write(tmp_path / "data.jsonl", rows)))
    assert [type(row) for row in found] == [Question, BadRow, BadRow, Question]
    assert "image must be a path or the bytes of a picture, got None" in found[1].reason
    assert "question must be a text, got ' '" in found[2].reason
    for source, message in ((b"", "empty"), (b"nonsense", "not a picture"), (png()[:200], "damaged")):
        with pytest.raises(ValueError, match=f"The picture.* {message}"):
            Question(0, (source,), "What?").open()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("no.parquet", None, "does not exist"), ("data.xls", "x", "must be one of .parquet, .jsonl"),
        ("empty.jsonl", "", "has no rows"), ("empty.parquet", "", "has no rows"),
        ("columns.csv", "picture,question\na,b\n", "must have the columns image and question, and has picture, question"),
        ("broken.jsonl", '{"image": 1', "cannot be read as jsonl"), ("broken.parquet", "PAR1", "cannot be read as parquet"),
    ],
)  # fmt: skip
def test_a_bad_file_is_one_line(name, content, message, tmp_path):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        list(read_questions(tmp_path / name))
