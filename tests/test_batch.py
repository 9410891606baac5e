"""`ptp batch`: every row once, whatever is killed. Parts run anywhere; the command runs where Ray is: `make test-ray`."""

import contextlib
import importlib.util
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ptp
from ptp.bench.measure import answer, encode_prompt
from ptp.cli import main
from ptp.pictures import open_picture
from ptp.serving.ray import engines, files, shards
from ptp.serving.ray.job import Job, identity, only_one, open_folder
from ptp.serving.ray.worker import Worker
from ptp.tiny.demo import load_demo

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None,
    reason="Ray is not installed here; `make test-ray` sets up an environment with it",
)
OPTIONS = ("--keep", "0.25", "--max-new-tokens", "6", "--shard-rows", "8", "--workers", "2")
WRONG = {3: "question must be a text", 20: "is not a picture", 21: "does not exist", 22: "got None", 23: "an empty list"}
"""Rows of the test's file that are no questions, and what is said of each."""


def small_questions(path: Path, rows: int, group: int) -> None:
    """Write a parquet file of questions about small pieces of the demo's pictures; the first five rows are bad."""
    pictures, asked = load_demo()
    chance, made = random.Random(0), []
    for row in range(rows):
        one, piece = asked[row % len(asked)], io.BytesIO()
        whole = pictures[one.picture]
        left, top = chance.randrange(whole.width - 64), chance.randrange(whole.height - 64)
        whole.crop((left, top, left + 64, top + 64)).save(piece, "PNG")
        made.append({"image": b"broken" if row < 5 else piece.getvalue(), "question": one.question, "id": row + 1_000_000})
    pq.write_table(pa.Table.from_pylist(made), path, row_group_size=group)


def questions(path: Path, rows: int, group: int, wrong: bool = True, ids: bool = True) -> list[dict]:
    """Write a parquet file about the demo's pictures: as bytes, as a path beside it, or two of them."""
    pictures, asked = load_demo()
    blobs = {}
    for name, image in pictures.items():
        image.save(path.parent / f"{name}.png")
        kept = io.BytesIO()
        image.save(kept, "PNG")
        blobs[name] = kept.getvalue()
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    made = []
    for row in range(rows):
        one = asked[row % len(asked)]
        bytes_, where = {"bytes": blobs[one.picture], "path": None}, {"bytes": None, "path": f"{one.picture}.png"}
        shown = [bytes_, where] if row % 10 == 9 else [where if row % 2 else bytes_]
        made.append({"image": shown, "question": f"{one.question}{' ' * (row // 9 % 3)}", "id": f"q{row}"})
    if wrong:
        made[3]["question"], made[20]["image"] = " ", [{"bytes": b"broken", "path": None}]
        made[21]["image"], made[22]["image"], made[23]["image"] = [{"bytes": None, "path": "none.png"}], None, []
    schema = pa.schema([("image", pa.list_(kind)), ("question", pa.string()), ("id", pa.string())])
    table = pa.Table.from_pylist(made, schema)
    pq.write_table(table if ids else table.drop_columns(["id"]), path, row_group_size=group)
    return made


def job_of(data: Path, out: Path, shard_rows: int = 8, **more) -> Job:
    pruner = ptp.PyramidPruner(keep_ratio=0.25, record_scores=False)
    rows = pq.read_metadata(data).num_rows
    return Job(data, out, rows, shard_rows, None, "pyramid", pruner, **{"max_new_tokens": 6, **more})


def found(out: Path, name: str = shards.PARTS) -> list[dict]:
    """All rows below a folder, shard by shard."""
    return [row for path in sorted((out / name).glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


# -- parts -----------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 90), st.integers(1, 40), st.integers(1, 25), st.data())
def test_shards_are_the_rows_that_their_numbers_say(tmp_path_factory, rows, group, shard_rows, data):
    """However the file is cut into row groups, and whatever is finished already."""
    path = tmp_path_factory.mktemp("cut") / "a.parquet"
    table = pa.table({"question": list(map(str, range(rows))), "image": ["a.png"] * rows, "other": [1] * rows})
    pq.write_table(table, path, row_group_size=group)
    job = job_of(path, path.parent, shard_rows)
    todo = [shard for shard in range(job.shards) if data.draw(st.booleans())]
    read = [each for run in shards.plan(job, todo) for each in shards.read_shards(job, **run)]
    assert [shard for shard, _ in read] == todo
    for shard, own in read:
        (back,) = shards.unpack(shards.pack(shard, own))
        assert back[0] == shard and back[1].column_names == ["image", "question"] and back[2] == ""
        assert back[1]["question"].to_pylist() == list(map(str, range(rows)))[shard * shard_rows : (shard + 1) * shard_rows]
        assert len(own) == job.size(shard)


def test_a_large_file_is_read_in_several_runs(tmp_path):
    rows = 5000
    pq.write_table(pa.table({"question": ["a"] * rows, "image": ["a.png"] * rows}), tmp_path / "a.parquet", row_group_size=100)
    job = job_of(tmp_path / "a.parquet", tmp_path, 25)
    runs = shards.plan(job, list(range(job.shards)))
    assert [run["row"] for run in runs] == list(range(0, rows, 100)) and runs[3]["todo"] == [12, 13, 14, 15]


def test_reading_holds_a_few_rows_and_not_a_row_group(tmp_path):
    """One row group of 64 MiB of pictures, in pages as they are when pictures are written a few at a time."""
    blob = random.Random(0).randbytes(1 << 20)
    pages = {"use_dictionary": False, "write_batch_size": 1, "data_page_size": 1}
    with pq.ParquetWriter(
        tmp_path / "a.parquet", pa.schema([("image", pa.binary()), ("question", pa.string())]), **pages
    ) as writer:
        writer.write_table(
            pa.table({"image": [blob[n:] + blob[:n] for n in range(64)], "question": ["a"] * 64}), row_group_size=64
        )
    job, before, most = job_of(tmp_path / "a.parquet", tmp_path, 4), pa.total_allocated_bytes(), 0
    (run,) = shards.plan(job, list(range(job.shards)))
    for _ in shards.read_shards(job, **run):
        most = max(most, pa.total_allocated_bytes() - before)
    assert 4 << 20 <= most < 32 << 20


def test_a_shard_too_large_to_travel_is_refused(monkeypatch):
    monkeypatch.setattr(shards, "LARGEST", 1 << 20)
    with pytest.raises(ValueError, match=r"at most 1 MiB, and shard 7 has 3. Lower --shard-rows"):
        shards.pack(7, pa.table({"image": [b"x" * (3 << 20)]}))


@pytest.mark.parametrize("ids", [True, False])
def test_a_worker_answers_as_plain_generate_does_and_says_what_was_wrong(tmp_path, ids):
    """Against single questions asked in transformers; bad rows cost the others nothing."""
    made = questions(tmp_path / "a.parquet", 30, 11, ids=ids)
    job = job_of(
        tmp_path / "a.parquet", tmp_path / "out", 30, settings={"keep_ratio": 0.25}, versions=engines.versions("transformers")
    )
    job.out.mkdir()
    shards.prepare(job.out)
    ((shard, rows),) = shards.read_shards(job, 0, 0, [0])
    worker = Worker(job)
    assert worker(shards.pack(shard, rows)).to_pylist() == [{"shard": 0, "problem": ""}]
    model, processor = ptp.load()
    good = [row for row in range(30) if row not in WRONG]
    answers = found(job.out)
    assert [one["row"] for one in answers] == good
    assert [one["id"] for one in answers] == [f"q{row}" if ids else row for row in good]
    for one in answers:
        asked = made[one["row"]]
        images = [open_picture(each["bytes"] or tmp_path / each["path"]) for each in asked["image"]]
        inputs = encode_prompt(processor, images, asked["question"], model)
        with job.pruner(model, processor) as trace:
            assert answer(model, processor, inputs, 6) == one["answer"]
        assert (one["visual_tokens"], one["visual_tokens_kept"]) == trace.visual_tokens
        assert one["visual_tokens"] == int((inputs["input_ids"] == model.config.image_token_id).sum())
        assert json.loads(one["settings"]) == {"keep_ratio": 0.25} and json.loads(one["versions"])["ptp"] == ptp.__version__
    errors = found(job.out, shards.ERRORS)
    assert [one["row"] for one in errors] == list(WRONG)
    for one in errors:
        assert WRONG[one["row"]] in one["reason"] and one["id"] == (f"q{one['row']}" if ids else one["row"])
    assert shards.count_errors(job.out) == (len(WRONG), f"row 3: {errors[0]['reason']}")
    worker.engine = None  # a finished shard is not touched again
    assert worker(shards.pack(shard, rows)).to_pylist() == [{"shard": 0, "problem": ""}]


class Moody:
    """An engine that fails where a question says so."""

    together, broken = 4, False

    def answer(self, asked):
        self.broken = self.broken or any(text == "break" for _, text in asked)
        for _, text in asked:
            if text == "no memory" or self.broken:
                raise RuntimeError("no memory\nleft")
            if text == "too long":
                raise ValueError("too long")
        return [engines.Answered(text.upper(), (4, 1)) for _, text in asked]


def moody(tmp_path: Path, texts: list[str]) -> tuple[list[dict], list[dict], str]:
    picture, made = next(iter(load_demo()[0].values())), tmp_path / "a.parquet"
    picture.save(tmp_path / "a.png")
    pq.write_table(pa.table({"image": ["a.png"] * len(texts), "question": texts}), made)
    job = job_of(made, tmp_path / "out", len(texts))
    job.out.mkdir()
    shards.prepare(job.out)
    worker = Worker(job)
    worker.engine = Moody()
    ((shard, rows),) = shards.read_shards(job, 0, 0, [0])
    (said,) = worker(shards.pack(shard, rows)).to_pylist()
    return found(job.out), found(job.out, shards.ERRORS), said["problem"]


def test_a_row_that_fails_in_a_batch_fails_alone(tmp_path):
    answers, errors, problem = moody(tmp_path, ["a", "no memory", "b", "c", "d", "too long"])
    assert [one["answer"] for one in answers] == ["A", "B", "C", "D"] and problem == ""
    assert [(one["row"], one["reason"]) for one in errors] == [(1, "RuntimeError: no memory left"), (5, "too long")]


@pytest.mark.parametrize("texts", [["no memory", "no memory"], ["a", "b", "c", "d", "break", "e"]])
def test_where_the_model_answers_nothing_any_more_no_row_is_called_bad(tmp_path, texts):
    """From the beginning, or from some row on."""
    answers, errors, problem = moody(tmp_path, texts)
    assert not answers and not errors
    assert problem.startswith("the model does not answer any more: RuntimeError: no memory left (in rows 0 to ")


def test_what_kills_its_workers_is_not_tried_for_ever(tmp_path, monkeypatch):
    """Ray starts a worker again as often as it dies."""
    questions(tmp_path / "a.parquet", 8, 8, wrong=False)
    job = job_of(tmp_path / "a.parquet", tmp_path / "out", workers=2)
    job.out.mkdir()
    shards.prepare(job.out)
    worker = Worker(job)
    packed = shards.pack(*next(shards.read_shards(job, 0, 0, [0])))

    def die(*given):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(engines, "build", die)
        for _ in range(7):
            with pytest.raises(KeyboardInterrupt):
                Worker(job)
    assert "workers died 5 times while they loaded the model" in Worker(job).problem
    with monkeypatch.context() as patch:
        patch.setattr(worker, "engine", type("Deadly", (), {"together": 4, "answer": die}))
        for _ in range(5):
            with pytest.raises(KeyboardInterrupt):
                worker(packed)
    (said,) = worker(packed).to_pylist()
    assert said["problem"].startswith("5 workers died while they answered rows 0 to 7. ")
    shards.prepare(job.out)  # the next run begins anew
    assert worker(packed).to_pylist() == [{"shard": 0, "problem": ""}] and Worker(job).problem == ""
    assert [path.name for path in (job.out / shards.PARTS).iterdir()] == [shards.part_name(0)]


def test_a_shard_of_bad_rows_is_finished(tmp_path):
    answers, errors, problem = moody(tmp_path, ["too long", " "])
    assert not answers and not problem and len(errors) == 2
    assert (tmp_path / "out" / shards.PARTS / shards.part_name(0)).exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"model": "nowhere"}, "'nowhere'"),
        ({"versions": {"torch": "1.0"}}, r"one on .* has torch .*, not 1.0. Install the same"),
        ({"pruner": ptp.PyramidPruner(prune_layer=99)}, r"prune_layer must be in \[0, 5\]"),
    ],
)
def test_what_is_wrong_for_all_rows_is_said_in_words(tmp_path, more, message):
    questions(tmp_path / "a.parquet", 30, 30)
    job = job_of(tmp_path / "a.parquet", tmp_path)
    shards.prepare(job.out)
    worker = Worker(Job(**{**vars(job), **more}))
    (said,) = worker(shards.pack(0, pa.table({"image": ["a"], "question": ["a"]}))).to_pylist()
    assert re.search(message, said["problem"]) and "\n" not in said["problem"]


def test_a_file_is_whole_or_absent_and_leftovers_go(tmp_path):
    def half(path):
        path.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError):
        files.write_whole(tmp_path / "a", half)
    assert list(tmp_path.iterdir()) == []
    files.write_whole(tmp_path / "a", lambda path: path.write_text("whole"))
    (tmp_path / f"{files.UNFINISHED}1-b").write_text("ha")
    files.clear_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_text() == "whole"


def test_errors_of_an_earlier_attempt_do_not_outlive_it(tmp_path):
    """A worker killed between the two files of a shard had not found a picture; the next one did."""
    questions(tmp_path / "a.parquet", 8, 8, wrong=False)
    job = job_of(tmp_path / "a.parquet", tmp_path / "out")
    job.out.mkdir()
    shards.prepare(job.out)
    rows = pa.table({"id": list("abcdefgh")})
    one = shards.Finished(1, "x", (2, 1))
    shards.write_shard(job, 0, rows, [one], {0: "gone"})
    assert found(job.out, shards.ERRORS) == [{"id": "a", "row": 0, "reason": "gone"}]
    shards.write_shard(job, 0, rows, [shards.Finished(0, "y", (2, 1)), one], {})
    assert not found(job.out, shards.ERRORS) and [each["answer"] for each in found(job.out)] == ["y", "x"]


def test_a_folder_is_of_one_run(tmp_path):
    out, run = tmp_path / "out", {"settings": {"keep_ratio": 0.5, "alpha": 0.5}, "versions": {"ptp": "1"}}
    open_folder(out, run)
    open_folder(out, run)
    for other, message in (
        ({**run, "settings": {"keep_ratio": 0.25, "alpha": 0.5}}, "begun with settings.keep_ratio 0.5, not 0.25"),
        ({**run, "versions": {"ptp": "2"}}, "begun with versions.ptp '1', not '2'"),
        ({"settings": run["settings"]}, "begun with versions.ptp '1', not None"),
    ):
        with pytest.raises(ValueError, match=message):
            open_folder(out, other)
    (out / "run.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        open_folder(out, run)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.jpg").write_text("")
    with pytest.raises(ValueError, match=r"must be empty or a run's own, and .* holds 'photo.jpg'"):
        open_folder(tmp_path / "mine", run)
    with pytest.raises(ValueError, match="is a file"):
        open_folder(tmp_path / "mine" / "photo.jpg", run)
    with only_one(out), pytest.raises(ValueError, match="Another run is writing"), only_one(out):
        pass
    with only_one(out):
        pass


def test_another_file_of_the_same_name_is_another_run(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": ["a"], "question": ["a"]}), path)
    first = identity(path)
    assert first == identity(path) and first["rows"] == 1
    changed = path.stat().st_mtime_ns
    pq.write_table(pa.table({"image": ["a"], "question": ["b"]}), path)
    os.utime(path, ns=(changed, changed))
    assert {name for name, value in identity(path).items() if value != first[name]} == {"footer"}, "its statistics differ"


def test_settings_reach_the_plugin_for_vllm():
    """As docs/serving.md says they are passed; the plugin reads them back as the same method."""
    from ptp.serving.vllm.settings import resolve

    pruner = ptp.PyramidPruner(keep_ratio=0.25, alpha=0.3, region="uniform", record_scores=False)
    job = Job(Path("a"), Path("b"), 1, 1, None, "pyramid", pruner, "vllm", {"max_model_len": 1024}, batch_size=4)
    arguments = engines.vllm_arguments(job)
    read = resolve(arguments["mm_processor_kwargs"]["ptp"])
    assert read is not None and {**vars(read.pruner), "record_scores": False} == vars(pruner)
    assert (arguments["max_model_len"], arguments["max_num_seqs"], arguments["dtype"]) == (1024, 4, "float32")
    whole = Job(**{**vars(job), "pruner": ptp.PyramidPruner(keep_ratio=1.0)})
    assert "mm_processor_kwargs" not in engines.vllm_arguments(whole), "the engine's own code path"
    with pytest.raises(ValueError, match=r"fastv cannot be served: it drops tokens at layer"):
        engines.vllm_arguments(Job(**{**vars(job), "method": "fastv", "pruner": ptp.METHODS["fastv"](keep_ratio=0.5)}))


# -- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("batch")
    questions(path / "questions.parquet", 200, 70)
    (path / "text.parquet").write_text("no parquet")
    pq.write_table(pa.table({"picture": ["a"], "question": ["a"]}), path / "columns.parquet")
    pq.write_table(pa.table({"image": pa.array([], pa.string()), "question": pa.array([], pa.string())}), path / "none.parquet")
    (path / "mine").mkdir()
    (path / "mine" / "photo.jpg").write_text("")
    return path


MISTAKES = {
    "no file": (["nowhere.parquet"], "'nowhere.parquet' does not exist"),
    "no parquet": (["text.parquet"], "cannot be read as parquet"),
    "another format": (["a.jsonl"], "ptp batch reads parquet files, got 'a.jsonl'. Convert it."),
    "columns": (["columns.parquet"], "must have the columns image and question, and has picture, question"),
    "no rows": (["none.parquet"], "has no rows"),
    "engine": (["questions.parquet", "--engine", "magic"], "--engine must be one of transformers, vllm, got 'magic'"),
    "method": (["questions.parquet", "--method", "magic"], "Method must be one of pyramid, random"),
    "keep": (["questions.parquet", "--keep", "0"], "keep_ratio must be in (0, 1]"),
    "inside": (["questions.parquet", "--engine", "vllm", "--method", "fastv"], "fastv cannot be served"),
    "engine's arguments": (
        ["questions.parquet", "--engine", "vllm", "--engine-args", "4"],
        "must be an object of JSON, got '4'",
    ),
    "arguments of no engine": (["questions.parquet", "--engine-args", '{"seed": 1}'], "--engine-args are vLLM's"),
    "no GPUs": (["questions.parquet", "--device", "cuda"], "Add --gpus-per-worker 1"),
    "GPUs for nothing": (["questions.parquet", "--device", "cpu", "--gpus-per-worker", "1"], "does not go with --device cpu"),
    "a GPU by number": (["questions.parquet", "--device", "cuda:1", "--gpus-per-worker", "1"], "Ray chooses which GPU"),
    "no workers": (["questions.parquet", "--workers", "0"], "--workers"),
}


def here(folder: Path, monkeypatch, capfd, *arguments) -> tuple[int, str]:
    """The command in this process: its exit code and what it said to stderr."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["ptp", "batch", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    return stopped.value.code or 0, capfd.readouterr().err


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=list(MISTAKES))
def test_a_mistake_is_one_line_and_makes_nothing(folder, monkeypatch, capfd, arguments, message):
    code, said = here(folder, monkeypatch, capfd, *arguments, "--out", "unmade")
    assert code == 2 and message in said and said.count("\n") == 1 and said.startswith("ptp: "), said
    assert not (folder / "unmade").exists()


def test_ray_is_an_extra(folder, monkeypatch, capfd):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "ray" else find(name, *more))
    code, said = here(folder, monkeypatch, capfd, "questions.parquet", "--out", "unmade")
    assert code == 2 and said == "ptp: ptp batch needs Ray Data. Install it with: pip install 'pyramid-token-pruning[ray]'\n"


@needs_ray
def test_readers_wait_for_what_they_have_read(tmp_path, monkeypatch):
    """However much there is: two workers, six shards on the way."""
    from ptp.serving.ray import driver

    pq.write_table(pa.table({"question": ["a"] * 80, "image": ["a.png"] * 80}), tmp_path / "a.parquet")
    job, waited = job_of(tmp_path / "a.parquet", tmp_path, 4, workers=2), []
    shards.prepare(job.out)

    def finish_one(seconds):
        waited.append(len(taken))
        (tmp_path / shards.PARTS / shards.part_name(len(waited) - 1)).touch()

    monkeypatch.setattr(driver.time, "sleep", finish_one)
    taken: list = []
    for packed in driver.packed_shards(job, 0, 0, list(range(20))):
        taken.append(packed["shard"][0].as_py())
    assert taken == list(range(20)) and waited == list(range(6, 20))
    (tmp_path / "a.parquet").unlink()
    (refused,) = driver.packed_shards(job, 0, 0, [0])
    assert "cannot be read on" in refused["problem"][0].as_py()


@needs_ray
def test_gpus_that_are_not_there_are_not_waited_for(folder):
    code, _, err = ended(start(folder, "gpus", "--gpus-per-worker", "50"))
    assert code == 2 and "2 workers with 50 GPUs each need 100, and this machine has" in err.strip().splitlines()[-1]


def start(folder: Path, out: str, *more: str, data: str = "questions.parquet", **environment: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "ptp", "batch", data, "--out", out, *OPTIONS, *more]
    made = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "160", "OMP_NUM_THREADS": "1"}
    made |= {"RAY_worker_niceness": "0", **environment}  # a machine that does other things beside would starve nice workers
    return subprocess.Popen(
        command, cwd=folder, env=made, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def ended(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=1800)
    return process.returncode, out, err


def parts(out: Path) -> int:
    return len(list((out / shards.PARTS).glob("part-*")))


def until_parts(process: subprocess.Popen, out: Path, count: int) -> None:
    """Wait until so many shards are finished."""
    seen, since = 0, time.monotonic()
    while (found := parts(out)) < count:
        assert process.poll() is None, ended(process)
        if found > seen:
            seen, since = found, time.monotonic()
        assert time.monotonic() - since < 300, f"{found} shards, and none for five minutes"
        time.sleep(0.02)


def workers_of(process: subprocess.Popen) -> list[int]:
    """The pool's processes, by descent from the command."""
    parents, found = {}, []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                title = (entry / "cmdline").read_text()
            except OSError:
                continue
            if title.startswith("ray::") and "Worker" in title:
                found.append(int(entry.name))

    def descends(pid: int) -> bool:
        while pid in parents and pid != process.pid:
            pid = parents[pid]
        return pid == process.pid

    return [pid for pid in found if descends(pid)]


def kill_worker(process: subprocess.Popen) -> bool:
    running = workers_of(process)
    if running:
        os.kill(random.choice(running), signal.SIGKILL)
    return bool(running)


def until_worker(process: subprocess.Popen) -> None:
    """Wait until the pool has one."""
    began = time.monotonic()
    while not workers_of(process):
        assert process.poll() is None, ended(process)
        assert time.monotonic() - began < 300, "no worker for five minutes"
        time.sleep(0.1)


def contents(out: Path) -> dict[str, list[dict]]:
    return {name: found(out, name) for name in (shards.PARTS, shards.ERRORS)}


@pytest.fixture(scope="module")
def whole(folder) -> Path:
    """200 rows in one run, with nothing killed."""
    code, said, err = ended(start(folder, "whole"))
    assert code == 0, err
    assert "195 of 200 rows are answered: whole/parts" in said and "5 rows were bad, the first: row 3: question must" in said
    return folder / "whole"


@needs_ray
def test_every_row_is_there_once(whole):
    rows, errors = contents(whole).values()
    assert [row["row"] for row in rows] == [row for row in range(200) if row not in WRONG]
    assert [row["row"] for row in errors] == list(WRONG) and [row["id"] for row in rows] == [f"q{row['row']}" for row in rows]
    told = json.loads(rows[0]["settings"])
    assert (told["method"], told["keep_ratio"], told["engine"]) == ("pyramid", 0.25, "transformers")
    assert "ptp-tiny" in told["model"] and all(row["visual_tokens_kept"] == row["visual_tokens"] // 4 for row in rows)
    right = {(one.picture, one.question): one.answer for one in load_demo()[1]}
    assert [row["answer"] for row in rows[:3]] == list(right.values())[:3]


@needs_ray
def test_a_finished_run_says_so_again_and_another_one_is_refused(folder, whole, monkeypatch, capfd):
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*.parquet")}
    code, said, _ = ended(start(folder, "whole"))
    assert code == 0 and "195 of 200 rows are answered" in said
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*.parquet")} == before
    code, said = here(folder, monkeypatch, capfd, "questions.parquet", "--out", "whole", *OPTIONS, "--alpha", "0")
    assert code == 2 and "'whole' was begun with settings.alpha 0.5, not 0" in said and said.count("\n") == 1
    code, said = here(folder, monkeypatch, capfd, "questions.parquet", "--out", "mine", *OPTIONS)
    assert code == 2 and "must be empty or a run's own" in said


@needs_ray
def test_what_is_killed_or_stopped_goes_on_and_ends_the_same(folder, whole):
    """A worker, then the driver, by SIGKILL; then Ctrl-C; then to the end."""
    out = folder / "killed"
    first = start(folder, "killed")
    until_parts(first, out, 3)
    assert kill_worker(first)
    until_parts(first, out, 8)
    first.kill()
    first.communicate()
    second = start(folder, "killed", "--workers", "1")  # slower than Ctrl-C
    until_worker(second)  # until then, shards come from those that the killed driver left behind
    until_parts(second, out, parts(out) + 1)
    os.killpg(second.pid, signal.SIGINT)  # as a terminal does it
    code, _, err = ended(second)
    done = parts(out)
    assert code == 130 and err.strip().splitlines()[-1].startswith("ptp: interrupted: "), err
    assert f"interrupted: {8 * done} of 200 rows are finished. The same command goes on." in err and 8 * done < 200
    code, said, err = ended(start(folder, "killed"))
    assert code == 0 and f"{8 * done} of 200 rows are finished; going on." in said, err
    assert contents(out) == contents(whole)
    left = [path.name for path in out.rglob("*") if path.name.startswith(files.UNFINISHED)]
    assert not left, "what was being written is cleared"


@needs_ray
def test_what_is_wrong_for_all_rows_ends_the_run_in_one_line(folder):
    code, _, err = ended(start(folder, "wrong", "--prune-layer", "99"))
    assert code == 2 and err.strip().splitlines()[-1].startswith("ptp: prune_layer must be in [0, 5]"), err
    assert not found(folder / "wrong")


@needs_ray
@pytest.mark.nightly
def test_a_cluster_is_an_address(folder, whole):
    """Two workers on a cluster that was there before, and is there afterwards."""
    ray = str(Path(sys.executable).with_name("ray"))
    began = [ray, "start", "--head", "--port", "6399", "--num-cpus", "2", "--include-dashboard", "false", "--block"]
    cluster = subprocess.Popen([*began, "--disable-usage-stats"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(60):
            time.sleep(1)
            code, said, err = 1, "", ""
            if subprocess.run([ray, "status", "--address", "127.0.0.1:6399"], capture_output=True).returncode == 0:
                code, said, err = ended(start(folder, "cluster", RAY_ADDRESS="127.0.0.1:6399"))
                break
        assert code == 0 and "On the Ray cluster at 127.0.0.1:6399: 2 CPUs and 0 GPUs, 2 workers." in said, err
        assert contents(folder / "cluster") == contents(whole) and cluster.poll() is None
    finally:
        cluster.terminate()
        cluster.wait(60)


@needs_ray
@pytest.mark.nightly
def test_five_thousand_rows_killed_three_times_at_random(folder):
    """A worker and the driver among what is killed; the output is that of one uninterrupted run."""
    small_questions(folder / "many.parquet", 5000, 1700)
    chance, more = random.Random(os.environ.get("SEED", "0")), ("--shard-rows", "25")
    whole, out = folder / "many", folder / "often"
    began = time.monotonic()
    process, most = start(folder, "many", *more, data="many.parquet"), 0
    while process.poll() is None:
        with contextlib.suppress(OSError, StopIteration):
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            most = max(most, int(next(line for line in lines if line.startswith("VmHWM")).split()[1]))
        time.sleep(0.5)
    code, said, err = ended(process)
    assert code == 0 and "4,995 of 5,000 rows are answered" in said, err
    seconds = time.monotonic() - began
    print(f"\n5,000 rows in {seconds:.0f} s, {5000 / seconds:.1f} rows/s; the driver's memory was at most {most >> 10} MiB")
    process, kills = start(folder, "often", *more, data="many.parquet"), []
    places = sorted(chance.sample(range(5, 190), 3))
    for place, kind in zip(places, chance.sample(["worker", "driver", "worker"], 3), strict=True):
        until_parts(process, out, place)
        if kind == "worker" and kill_worker(process):
            kills.append((kind, parts(out)))
        else:
            process.kill()
            process.communicate()
            kills.append(("driver", parts(out)))
            process = start(folder, "often", *more, data="many.parquet")
    code, said, err = ended(process)
    assert code == 0, err
    print(f"killed after so many of 200 shards: {kills}")
    assert {kind for kind, _ in kills} == {"worker", "driver"}
    rows = contents(out)
    assert sorted(row["row"] for each in rows.values() for row in each) == list(range(5000))
    assert rows == contents(whole) and len({row["answer"] for row in rows[shards.PARTS]}) > 20
