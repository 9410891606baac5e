"""Pictures of one's own: agreement with the unpruned model, files that resume, and everything that goes wrong in one line."""

import errno
import io
import json
import shutil
import subprocess
import sys

import families
import numpy as np
import pytest
import torch
from conftest import dropped_tokens, embeddings, encode, masked_logits, picture, processor, prompt, small_model
from scipy.stats import entropy

import ptp.evaluation.journal as journal_file
from ptp import PyramidPruner, RandomPruner
from ptp.cli import main
from ptp.evaluation.agreement import Agreement, agreement, answer, divergence, same_answer
from ptp.evaluation.data import Question, count_rows
from ptp.evaluation.journal import Journal
from ptp.evaluation.metrics import METRICS
from ptp.evaluation.own import Answered, Asker, Outcome, pruners_of
from ptp.evaluation.own_summary import comma_separated, markdown, overview, plot, rows
from ptp.methods.parsing import parse_variants
from ptp.tiny import WEIGHTS
from ptp.tiny.demo import load_demo
from test_cli import ptp

pytest.importorskip("pyarrow")
QUESTION = "What is on the red circle?"


def png(image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize("keep", [0.5, 0.1])
@pytest.mark.parametrize("layer", [0, 2])
def test_a_pruned_model_led_along_an_answer_thinks_what_masking_says(layer, keep):
    """The reference runs the whole sequence and forbids attention to dropped tokens; nothing of it is led or cached."""
    model, inputs = small_model(), encode(prompt(picture(0, (3, 2))))
    full = answer(model, inputs, 6)
    start, count = inputs["input_ids"].shape[1], len(full.ids)
    with torch.no_grad():
        whole = dict(inputs, input_ids=torch.cat([inputs["input_ids"], full.ids[None]], dim=1))
        states = embeddings(model, whole)
        with PyramidPruner(keep_ratio=keep, prune_layer=layer)(model, processor()) as trace:
            led = answer(model, inputs, 6, along=full.ids)
        nothing = torch.zeros_like(whole["input_ids"], dtype=torch.bool)
        gone = torch.nn.functional.pad(dropped_tokens(trace, inputs), (0, count))
        expected, plain = (masked_logits(model, states, mask, layer, start)[0, start - 1 : -1] for mask in (gone, nothing))
    assert torch.allclose(full.logits, plain, atol=1e-4) and torch.allclose(led.logits, expected, atol=1e-4)
    assert torch.equal(led.chosen, expected.argmax(dim=-1)) and torch.equal(full.ids, full.chosen)
    found = agreement(full, led)
    assert found.same == torch.equal(expected.argmax(dim=-1), plain.argmax(dim=-1))
    by_scipy = entropy(plain.double().softmax(dim=-1).numpy(), expected.double().softmax(dim=-1).numpy(), axis=1)
    assert found.kl == pytest.approx(by_scipy.mean(), rel=1e-3) and found.kl > 0


def test_divergence_is_the_textbook_one_and_ignores_what_is_impossible():
    p, q = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]), torch.tensor([[0.25, 0.75, 0.0], [0.5, 0.25, 0.25]])
    expected = [0.5 * np.log(2) + 0.5 * np.log(2 / 3), np.log(2)]
    assert divergence(p.log(), q.log()).tolist() == pytest.approx(expected)
    assert divergence(p.log(), p.log()).tolist() == [0, 0]


def test_an_answer_that_ends_early_is_followed_to_its_end_token():
    model, inputs = small_model(), encode(prompt(picture(0, (2, 1))))
    plain = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert torch.equal(answer(model, inputs, 6).ids, plain)
    model.generation_config.eos_token_id = int(plain[2])
    try:
        stop = plain.tolist().index(int(plain[2])) + 1
        full = answer(model, inputs, 6)
        assert full.ids.tolist() == plain[:stop].tolist() and len(full.logits) == stop
        again = answer(model, inputs, 6, along=full.ids)
        assert same_answer(full, again) and agreement(full, again) == Agreement(True, 0.0)
    finally:
        model.generation_config.eos_token_id = None
    with pytest.raises(ValueError, match="one prompt at a time, got 2"):
        answer(model, encode(prompt(picture(0, (2, 1))), prompt(picture(1, (2, 1)))), 2)


def test_every_family_is_asked_as_it_is_alone(family):
    """Against plain `generate` under the pruner, each encoding its picture anew; keep 1 is the unpruned model, bit for bit."""
    model, proc = families.model_of(family), families.processor_of(family)
    (method,) = parse_variants("random")
    asker = Asker(model, proc, [method], max_new_tokens=5)
    pruners = pruners_of([method], {("random", 1.0): 1.0, ("random", 0.3): 0.3, ("random", 0.01): None})
    assert list(pruners) == [("random", 1.0), ("random", 0.3)], "what cannot be reached is left out"
    shown = [families.picture(0), families.picture(0 if family.name == "internvl" else 1)]
    for pictures in (shown[:1], shown):
        question = Question(0, tuple(map(png, pictures)), QUESTION, ("no answer is this",))
        asked = asker.ask(question, asker.prepare(question), pruners, METRICS["exact"])
        asked_once = dict(tokenize=True, return_dict=True, processor_kwargs={"return_tensors": "pt"})
        inputs = proc.apply_chat_template(prompt(*pictures, question=QUESTION), add_generation_prompt=True, **asked_once)
        texts, traces = [], []
        for pruner in (None, RandomPruner(keep_ratio=0.3)):
            if pruner is None:
                ids = model.generate(**inputs, max_new_tokens=5, do_sample=False)
            else:
                with pruner(model, proc) as trace:
                    ids = model.generate(**inputs, max_new_tokens=5, do_sample=False)
                traces.append(trace.newest)
            texts.append(proc.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip())
        full, all_kept, pruned = asked.outcomes
        assert [full.text, all_kept.text, pruned.text] == [texts[0], texts[0], texts[1]]
        noise = 1e-6 if "gemma" in family.name else 0  # their windows come as another mask
        assert all_kept.same and all_kept.kl <= noise < pruned.kl
        assert (pruned.total, pruned.kept) == traces[0].visual_tokens and full.kept == full.total == pruned.total
        assert {one.score for one in asked.outcomes} == {0.0} and pruned.tokens == 5
        assert not pruned.same or texts[0] == texts[1]


def test_each_picture_is_encoded_once_and_asked_unpruned_once(monkeypatch):
    model, proc = small_model(), processor()
    contenders = parse_variants("random,pyramid")
    asker = Asker(model, proc, contenders, max_new_tokens=3)
    encoded, unpruned = [], []
    original, generate = type(model).get_image_features, model.generate
    monkeypatch.setattr(
        type(model),
        "get_image_features",
        lambda self, pixel_values, **rest: encoded.append(len(pixel_values)) or original(self, pixel_values, **rest),
    )
    pruned = [False]

    def counted(**kwargs):
        unpruned.append(not pruned[0])
        return generate(**kwargs)

    monkeypatch.setattr(model, "generate", counted)
    told = {(one.name, keep): keep for one in contenders for keep in (0.5, 0.2)}
    pruners = {key: Noticed(pruner, pruned) for key, pruner in pruners_of(contenders, told).items()}
    pictures = [png(picture(0, (2, 1))), png(picture(1, (2, 1)))]
    for number, shown in enumerate((0, 0, 1, 0)):
        question = Question(number, (pictures[shown],), f"Question {number}?")
        assert asker.ask(question, asker.prepare(question), pruners, METRICS["exact"]).outcomes[-1].score is None
    assert len(encoded) == 2 and sum(unpruned) == 4


class Noticed:
    """A pruner that says when it is at work."""

    def __init__(self, pruner, flag):
        self.pruner, self.flag = pruner, flag

    def __call__(self, *arguments):
        context, flag = self.pruner(*arguments), self.flag

        class Noticing:
            def __enter__(self):
                flag[0] = True
                return context.__enter__()

            def __exit__(self, *error):
                flag[0] = False
                return context.__exit__(*error)

        return Noticing()


def answered(scores: dict[tuple[str, float], list[float | None]]) -> list[Answered]:
    """Questions with these scores, method by method; half the tokens kept, answers the same where the score is full's."""
    (full, *_), count = scores.values(), len(next(iter(scores.values())))
    return [
        Answered(n, "?", ("a",) if full[n] is not None else (), tuple(
            Outcome(*key, "a", own[n], own[n] == full[n], 0.1 * n, round(100 * key[1]), 100, 100 * key[1], 0, 2, 0.5)
            for key, own in scores.items()
        ))
        for n in range(count)
    ]  # fmt: skip


def test_rows_are_means_of_what_is_known():
    scores = {("full", 1.0): [1.0, 0.5, None, 1.0] * 10, ("random", 0.5): [1.0, 0.5, None, 0.0] * 10}
    table = rows(answered(scores))
    full, half = table
    assert (half["questions"], half["answered"]) == (40, 30) and (full["kept"], half["kept"]) == (1.0, 0.5)
    assert full["score"] == pytest.approx(2.5 / 3) and half["score"] == pytest.approx(0.5)
    assert half["relative"] == pytest.approx(0.6) and half["relative_interval"][0] < 0.6 < half["relative_interval"][1] < 1
    assert half["same"] == 0.75 and half["kl"] == pytest.approx(1.95) and half["ms_per_answer"] == 500
    assert half["kl_interval"][0] < 1.95 < half["kl_interval"][1]
    heads, _, line = overview(table)
    assert line[heads.index("score / full")].startswith("60.0 % [") and line[heads.index("same answer")].startswith("75.0 %")
    text = markdown(table, "exact", 3)
    assert "40 questions, 30 of them with a right answer, 3 rows left out as bad." in text
    assert len(comma_separated(table).splitlines()) == 3


def test_without_answers_there_is_no_score(tmp_path):
    table = rows(answered({("full", 1.0): [None] * 4, ("random", 0.5): [None] * 4, ("random", 0.2): [None] * 4}))
    assert table[1]["score"] is None and "score" not in overview(table)[0] and "metric" not in markdown(table, "exact", 0)
    plot(table, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    none_right = rows(answered({("full", 1.0): [0.0] * 4, ("random", 0.5): [0.0] * 4}))
    assert none_right[1]["relative"] is None, "there is nothing to be relative to"


def test_a_journal_goes_on_from_any_byte(tmp_path):
    path, settings = tmp_path / "j.jsonl", {"keep": [0.5], "model": "m"}
    for n in range(3):
        Journal(path, settings).append({"number": n})
    whole = path.read_bytes()
    assert Journal(path, settings).rows == [{"number": n} for n in range(3)]
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        found = Journal(path, settings)
        assert path.read_bytes() == whole[:cut], "reading changes nothing"
        assert found.rows == [{"number": n} for n in range(3)][: max(0, whole[:cut].count(b"\n") - 1)]
        found.append({"number": 9})
        assert Journal(path, settings).rows == [*found.rows, {"number": 9}]
    with pytest.raises(ValueError, match=r"was made with keep \[0.5\], not \[0.2\]"):
        Journal(path, {**settings, "keep": [0.2]})
    assert Journal(path, {**settings, "keep": [0.2]}, force=True).rows == []
    path.write_text("mine\n")
    with pytest.raises(ValueError, match="not the journal of an evaluation"):
        Journal(path, settings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files of questions about the demo's pictures, good and bad ones."""
    path = tmp_path_factory.mktemp("own")
    pictures, questions = load_demo()
    for name, image in pictures.items():
        image.save(path / name)
    good = [{"image": one.picture, "question": one.question, "answer": one.answer} for one in questions[:4]]
    (path / "broken.jpg").write_bytes((path / good[0]["image"]).read_bytes()[:400])
    bad = [
        {"image": "broken.jpg", "question": "What?", "answer": "x"},
        {"image": "none.png", "question": "What?", "answer": "x"},
    ]
    for name, lines in {"good": good, "mixed": [good[0], *bad, good[1]], "bad": bad, "again": good}.items():
        (path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (path / "empty.jsonl").write_text("")
    (path / "columns.csv").write_text("picture,question\na,b\n")
    return path


@pytest.fixture
def here(folder, monkeypatch, capfd):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "160")
    threads = torch.get_num_threads()

    def run(*arguments) -> subprocess.CompletedProcess:
        monkeypatch.setattr(sys, "argv", ["ptp", "eval", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        return subprocess.CompletedProcess(arguments, stopped.value.code or 0, *capfd.readouterr())

    yield run
    torch.set_num_threads(threads)


ASKED = ("--methods", "pyramid,random", "--keep", "1,0.5,0.1", "--threads", "1")


def test_results_are_written_and_a_finished_run_says_them_again(folder, here):
    result = here("--data", "good.jsonl", *ASKED, "--metric", "exact", "--out", "good.json")
    assert result.returncode == 0, result.stderr
    data = json.loads((folder / "good.json").read_text())
    named = [(row["method"], row["keep_ratio"]) for row in data["rows"]]
    assert named == [("full", 1), *((method, keep) for method in ("pyramid", "random") for keep in (0.5, 0.1))]
    assert data["rows"][0]["score"] == 1 and data["rows"][1]["kept"] == 0.5
    assert data["settings"]["metric"] == "exact" and len(data["answers"]) == 4 and "command" in data["about"]
    assert "| pyramid | 0.5 |" in (folder / "good.md").read_text()
    assert (folder / "good.csv").exists() and (folder / "good.png").exists() and not (folder / "good.bad.jsonl").exists()
    first = (folder / "good.rows.jsonl").read_bytes()
    again = here("--data", "good.jsonl", *ASKED, "--metric", "exact", "--out", "good.json")
    assert again.stdout == result.stdout and (folder / "good.rows.jsonl").read_bytes() == first
    other = here("--data", "good.jsonl", *ASKED, "--metric", "anls", "--out", "good.json")
    assert other.returncode == 2 and "was made with metric 'exact', not 'anls'" in other.stderr
    (folder / "again.jsonl").write_text((folder / "good.jsonl").read_text().replace("?", "!"))
    changed = here("--data", "again.jsonl", *ASKED, "--metric", "exact", "--out", "good.json")
    assert changed.returncode == 2 and "was made with data 'good.jsonl" in changed.stderr


def test_bad_rows_go_to_a_file_with_their_reasons_and_are_tried_again(folder, here):
    result = here("--data", "mixed.jsonl", "--keep", "0.5", "--out", "mixed.json")
    assert result.returncode == 0, result.stderr
    assert "downsample needs pictures that were drawn" in result.stdout and "Left out 2 bad rows" in result.stdout
    bad = [json.loads(line) for line in (folder / "mixed.bad.jsonl").read_text().splitlines()]
    assert [row["row"] for row in bad] == [1, 2] and "damaged" in bad[0]["reason"] and "does not exist" in bad[1]["reason"]
    assert [one["number"] for one in json.loads((folder / "mixed.json").read_text())["answers"]] == [0, 3]
    nothing = here("--data", "bad.jsonl", "--keep", "0.5", "--methods", "random")
    assert nothing.returncode == 2 and "ptp: No row of 'bad.jsonl' could be asked; row 0: Picture" in nothing.stderr
    before = (folder / "broken.jpg").read_bytes()
    for name in ("broken.jpg", "none.png"):
        picture(0, (2, 1)).save(folder / name)
    try:
        mended = here("--data", "mixed.jsonl", "--keep", "0.5", "--out", "mixed.json")
        assert mended.returncode == 0 and "bad" not in mended.stdout and not (folder / "mixed.bad.jsonl").exists()
        assert len(json.loads((folder / "mixed.json").read_text())["answers"]) == 4
    finally:
        (folder / "broken.jpg").write_bytes(before)
        (folder / "none.png").unlink()


def test_several_models_in_a_directory_are_asked_one_by_one(folder, here):
    for name in ("first", "second"):
        shutil.copytree(WEIGHTS, folder / "several" / name)
    result = here("--data", "good.jsonl", "--model", "several", "--methods", "random", "--keep", "0.5", "--out", "each.json",
                  "--limit", "2", "--metric", "exact")  # fmt: skip
    assert result.returncode == 0, result.stderr
    first, second = (json.loads((folder / f"each-{name}.json").read_text()) for name in ("first", "second"))
    assert len(first["answers"]) == 2 and first["rows"][0]["score"] == second["rows"][0]["score"] == 1
    assert not (folder / "each.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "empty.jsonl"), "has no rows"), (("--data", "columns.csv"), "must have the columns image and question"),
        (("--data", "none.jsonl"), "does not exist"), (("--metric", "anls"), "--metric does not go with drawn"),
        (("--data", "good.jsonl", "--metric", "magic"), "--metric must be one of exact"),
        (("--data", "good.jsonl", "--methods", "magic"), "Method must be one of"),
        (("--data", "good.jsonl", "--keep", "0"), "keep_ratio must be in (0, 1]"),
        (("--data", "good.jsonl", "--tasks", "read"), "--tasks does not go with --data"),
        (("--data", "good.jsonl", "--out", "x.txt"), "--out must end in .json"),
        (("--data", "good.jsonl", "--methods", "pyramid:prune_layer=99"), "prune_layer must be in [0, 5]"),
        (("--data", "good.jsonl", "--methods", "pyramid,random:window=112"), "must have one window, got [112, 448]"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_leaves_nothing_behind(folder, here, arguments, message):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    out = () if "--out" in arguments or "--data" not in arguments else ("--out", "never.json")
    result = here(*arguments, *out)
    lines = result.stderr.strip().splitlines()
    assert result.returncode == 2 and len(lines) == 1 and lines[0].startswith("ptp: ") and message in lines[0], result.stderr
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_pyarrow_is_an_extra(folder, here, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    result = here("--data", "good.jsonl")
    assert result.returncode == 2 and "pip install 'pyramid-token-pruning[data]'" in result.stderr
    assert len(result.stderr.splitlines()) == 1


STOPPED = f"""
import os, signal, sys
import ptp.cli
from ptp.evaluation.own import Asker
signal.signal(signal.SIGINT, signal.default_int_handler)
original, asked = Asker.ask, []
def ask(*arguments):
    asked.append(1)
    if len(asked) == 3:
        os.kill(os.getpid(), signal.SIGINT)
    return original(*arguments)
Asker.ask = ask
sys.argv = ["ptp", "eval", "--data", "good.jsonl", *{ASKED}, "--out", "stopped.json"]
ptp.cli.main()
"""


def numbers(path) -> list[dict]:
    """The rows of a journal or of results, without times."""
    if path.suffix == ".json":
        found = json.loads(path.read_text())["answers"]
    else:
        found = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    return [row | {"outcomes": [{**one, "seconds": 0} for one in row["outcomes"]]} for row in found]


def test_a_run_stopped_by_ctrl_c_or_a_full_disk_goes_on_with_the_same_numbers(folder, here, monkeypatch):
    stopped = subprocess.run([sys.executable, "-c", STOPPED], capture_output=True, text=True, cwd=folder, timeout=200)
    assert stopped.returncode == 130 and stopped.stderr.strip().splitlines()[-1] == "ptp: interrupted"
    journal = folder / "stopped.rows.jsonl"
    two = numbers(journal)
    assert len(two) == 2 and not (folder / "stopped.json").exists()
    room = journal.stat().st_size + 100  # the next row is cut in the middle
    full = ptp("eval", "--data", "good.jsonl", *ASKED, "--out", "stopped.json", cwd=folder, file_size=room)
    assert full.returncode == 2 and len(full.stderr.splitlines()) == 1, full.stderr
    assert "File too large. What was finished is kept" in full.stderr and "stopped.rows.jsonl" in full.stderr
    assert journal.stat().st_size == room, "a line was cut"
    real = open

    def disk_full(self, mode="r", *arguments, **keywords):
        if mode == "a":
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, mode, *arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(type(journal), "open", disk_full)
        result = here("--data", "good.jsonl", *ASKED, "--out", "stopped.json")
    assert result.returncode == 2 and "No space left on device. What was finished is kept" in result.stderr
    assert numbers(journal) == two
    assert here("--data", "good.jsonl", *ASKED, "--out", "stopped.json").returncode == 0
    assert here("--data", "good.jsonl", *ASKED, "--out", "whole.json").returncode == 0
    assert numbers(folder / "stopped.json") == numbers(folder / "whole.json") and numbers(folder / "whole.json")[:2] == two


def test_a_line_that_cannot_be_written_says_where_and_other_errors_stay_what_they_are(tmp_path):
    if sys.platform == "linux":
        with pytest.raises(OSError, match=r"No space left on device\. What was finished is kept.*'/dev/full'"):
            journal_file.append_line(type(tmp_path)("/dev/full"), {"row": 0})
    with pytest.raises(IsADirectoryError):
        journal_file.append_line(tmp_path, {"row": 0})


def test_rows_are_counted(folder):
    assert count_rows(folder / "good.jsonl") == 4
