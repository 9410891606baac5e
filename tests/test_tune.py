"""`ptp tune`: the bounds and the race against what they are by hand; small models from pictures to tuned.json."""

import io
import json
import math
import re
import subprocess
import sys
import warnings
from pathlib import Path

import families
import numpy as np
import pytest
import torch
from scipy.stats import binomtest, ttest_rel

import ptp
from ptp.bench.measure import encode_prompt
from ptp.cli import main
from ptp.evaluation.agreement import agreement, answer
from ptp.evaluation.data import Question
from ptp.evaluation.own import Asker
from ptp.methods.parsing import parse_variants
from ptp.testing import FAMILIES
from ptp.tiny.demo import load_demo
from ptp.tiny.drawing import draw_scene
from ptp.tuning.bounds import change_bound, clopper_pearson, hoeffding_bentkus, pictures_needed
from ptp.tuning.candidates import Arm, arms, candidates
from ptp.tuning.outcome import lines, proposed, verdict
from ptp.tuning.race import FINALISTS, Seen, best, places, rounds, surely_worse, survivors
from ptp.tuning.rows import GENERIC, halves
from ptp.tuning.tuned import read_tuned, shape_of
from ptp.tuning.tuner import Tuner, signal_readers

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(("changed", "count"), [(0, 1), (0, 299), (3, 40), (39, 40), (40, 40)])
def test_the_exact_bound_is_that_of_scipys_binomial_test(changed, count):
    exact = binomtest(changed, count, alternative="less").proportion_ci(0.95, method="exact").high
    assert clopper_pearson(changed, count) == pytest.approx(exact, abs=1e-9)


def test_bounds_hold_as_often_as_they_say():
    """Pictures whose three answers change together: the true share is above the bound at most once in twenty."""
    rng = np.random.default_rng(0)
    truth, missed = 0.06, 0
    for _ in range(400):
        pictures = np.where(rng.random(60) < 0.1, rng.choice([0, 1, 2, 3], 60, p=[0.1, 0.2, 0.5, 0.2]), 0) / 3
        missed += hoeffding_bentkus(pictures) < truth
    assert np.isclose(0.1 * (0.2 + 2 * 0.5 + 3 * 0.2) / 3, truth) and missed <= 400 * 0.05
    assert hoeffding_bentkus([0.0] * 100) == pytest.approx(1 - 0.05 ** (1 / 100), abs=1e-6), "of none, Hoeffding's is exact"
    assert hoeffding_bentkus([1.0] * 9) == 1 and hoeffding_bentkus([0, 1] * 200) > clopper_pearson(200, 400)
    with pytest.raises(ValueError, match=r"in \[0, 1\], got \[2\]"):
        hoeffding_bentkus([2])
    with pytest.raises(ValueError, match="got 3 of 2"):
        clopper_pearson(3, 2)


def test_pictures_with_several_questions_count_once():
    assert change_bound([[True], [False], [False]]) == (clopper_pearson(1, 3), "Clopper-Pearson")
    bound, name = change_bound([[True, True], [False, False], [False, True]])
    assert bound == hoeffding_bentkus([1, 0, 0.5]) and "over pictures" in name


@pytest.mark.parametrize("limit", [0.01, 0.05, 0.2])
def test_how_many_pictures_it_takes_is_the_smallest_number(limit):
    needed = pictures_needed(limit, several=False)
    assert needed == math.ceil(math.log(0.05) / math.log(1 - limit)), "none of so many changed"
    assert clopper_pearson(0, needed) <= limit < clopper_pearson(0, needed - 1)
    several = pictures_needed(limit, several=True)
    assert hoeffding_bentkus([0.0] * several) <= limit < hoeffding_bentkus([0.0] * (several - 1))
    assert pictures_needed(limit, False, rate=limit / 2) > needed and pictures_needed(limit, False, rate=limit) is None


def arm(name: str, share: float = 0.5) -> Arm:
    return Arm(name, share, share)


def test_rounds_double_and_end_with_every_question():
    assert rounds(100) == [12, 24, 48, 96, 100] and rounds(96) == [12, 24, 48, 96] and rounds(5) == [5]
    assert [places(number, 40) for number in range(6)] == [20, 10, 5, FINALISTS, FINALISTS, FINALISTS]


def test_surely_worse_is_the_paired_t_test():
    rng = np.random.default_rng(0)
    hard = rng.random(30)  # what all find hard: pairs tell apart what means alone could not
    losses = np.clip(np.stack([hard, hard + 0.02 + 0.01 * rng.random(30), hard + 0.01 * (rng.random(30) - 0.5)]), 0, 2)
    times = np.array([0.5, 0.5, 0.5])
    by_hand = [
        any(ttest_rel(losses[i], losses[j], alternative="greater").pvalue < 0.05 / 2 for j in range(3) if j != i)
        for i in range(3)
    ]
    assert surely_worse(losses, times).tolist() == by_hand == [False, True, False]
    assert not surely_worse(losses, np.array([0.6, 0.5, 0.6])).any(), "it is faster than all that lose less"
    assert surely_worse(losses, np.array([0.52, 0.5, 0.6])).tolist() == by_hand, "2 % are the clock's"
    assert not surely_worse(np.ones((4, 30)), np.ones(4)).any(), "equals"
    assert not surely_worse(losses[:, :1], times).any(), "one question says nothing for sure"


def test_the_best_stay_however_many_there_are():
    wrong = [np.roll(np.arange(12) <= n, 5 * n) for n in range(8)]  # a0 fails once in twelve, a1 twice, each elsewhere
    results = {arm(f"a{n}", share): [Seen(bool(bad), 0.0, 1.0, share) for bad in wrong[n]]
               for share in (0.5, 0.1) for n in range(8)}  # fmt: skip
    left = survivors(results, {0.5: 8, 0.1: 8}, 0)
    assert [one.name for one in left if one.share == 0.5] == ["a0", "a1", "a2", "a3"]
    assert [(one.name, one.share) for one in best({one: results[one] for one in left})] == [("a0", 0.5), ("a0", 0.1)]
    hopeless = {arm("good"): [Seen(False, 0.0, 1.0, 0.5)] * 12, arm("bad", 0.1): [Seen(True, 9.0, 1.0, 0.1)] * 12}
    assert len(survivors(hopeless, {0.5: 1, 0.1: 1}, 0)) == 2, "every share has somebody to tell of"
    calm = [Seen(False, 0.0, 1.0, 0.5)] * 12
    slow = [Seen(False, 0.1 + n / 99, 2.0, 0.1) for n in range(12)]
    fast = [Seen(n % 3 == 0, 0.1, 1.0, 0.1) for n in range(12)]
    dear = {arm("many, fast"): calm, arm("few, slow", 0.1): slow, arm("few, fast, worse", 0.1): fast}
    assert len(survivors(dear, {0.5: 1, 0.1: 2}, 0)) == 3, "another share's neither loses nor wins a place in this one"
    assert Seen(True, math.inf, 1, 1).loss == 1 and Seen(False, 0, 1, 1).loss == 0


def test_candidates_are_different_and_fit_any_method():
    found = candidates(["pyramid", "random", "fastv", "visionzip", "dart:pivots=4"], 12)
    names = [one.name for one in found]
    assert {"pyramid", "pyramid:alpha=0", "random", "random:prune_layer=4", "fastv", "dart:pivots=4"} <= set(names)
    assert "random:prune_layer=0" not in names, "that is random as it is"
    made = [one.pruner(0.5) for one in found]
    assert all(a != b for place, a in enumerate(made) for b in made[:place])
    reach = arms(found, [0.5, 0.1], 12)
    for one in reach:
        assert one.variant.pruner(one.keep_ratio).average_keep(12) == pytest.approx(one.share, abs=1e-4)
    late = [one for one in reach if one.name == "random:prune_layer=4"]
    assert [one.share for one in late] == [0.5], "a third of the layers see everything: 0.1 is out of reach"
    with pytest.raises(ValueError, match="Method must be one of"):
        candidates(["magic"], 12)


def test_no_picture_is_in_both_halves():
    rows = [Question(n, (f"p{n // 2}".encode(),), "?") for n in range(20)]
    rows.append(Question(20, (b"p0", b"p9"), "?"))  # the two belong together now
    split = halves(rows, [])
    sides = [{picture for row in side for picture in row.pictures} for side in (split.choosing, split.reporting)]
    assert not sides[0] & sides[1] and sum(map(len, sides)) == 10 and split.several
    assert len(split.choosing) + len(split.reporting) == 21 and halves(rows, []) == split
    firsts = split.choosing[: len({split.groups[row.number] for row in split.choosing})]
    assert len({split.groups[row.number] for row in firsts}) == len(firsts), "first one question of every picture"
    with pytest.raises(ValueError, match="at least two different pictures"):
        halves(rows[:2], [])


def seen(changed: int, count: int) -> list[Seen]:
    return [Seen(n < changed, 0.01, 0.5, 0.5) for n in range(count)]


def test_what_is_proven_is_proven_in_order():
    """A lucky smaller share behind one that failed is not proven: the order was fixed beforehand."""
    results = {arm("a", 0.9): seen(0, 300), arm("b", 0.5): seen(1, 300), arm("c", 0.25): seen(0, 300)}
    times = {"full": [2.0, 4.0, 3.0], **{one.key: [1.0, 1.0, 1.0] for one in results}}
    found = lines(results, list(range(300)), times, 0.01)
    assert [line.proven for line in found] == [True, False, False] and proposed(found).name == "a"
    assert found[1].bound == clopper_pearson(1, 300) and (found[0].first_token, found[0].speed_up) == (1.0, 3.0)
    (text,) = verdict(found, 0.01)
    assert "a at keep 0.9" in text and "0 of 300" in text and "First token 3e+03 -> 1e+03 ms (3.00x)" in text
    looser = lines(results, list(range(300)), times, 0.02)
    assert proposed(looser).name == "c" and all(line.proven for line in looser)


def test_too_few_pictures_are_told_how_many_it_takes():
    found = lines(
        {arm("a", 0.9): seen(0, 20), arm("b", 0.5): seen(0, 20), arm("c", 0.1): seen(3, 20)}, list(range(20)), {}, 0.01
    )
    first, second = verdict(found, 0.01)
    assert "not shown" in first and "b at keep 0.5" in first, "the smallest of those that seem best"
    assert "at least 598 pictures" in second and "there are 20" in second
    enough = lines({arm("a", 0.9): seen(30, 400)}, list(range(400)), {}, 0.01)
    assert "Even 90 % of the tokens changed 30 of 400" in verdict(enough, 0.01)[1]


@pytest.mark.parametrize("name", ["qwen2.5-vl", "smolvlm"])
def test_other_families_race_and_resume(name):
    """Small random models; every number is what asking each arm by itself gives, and a second run asks nothing again."""
    family = FAMILIES[name]
    model, proc = families.model_of(family), families.processor_of(family)
    variants = parse_variants("random,uniform_grid")
    depth = model.config.get_text_config().num_hidden_layers
    asker = Asker(model, proc, variants, 3, signal_readers(depth, 448))
    split = halves([Question(n, (png(families.picture(n)),), f"Question {n % 2}?") for n in range(3)], [])
    notes, runners = [], arms(variants, [0.5, 0.25], depth)
    tuner = Tuner(asker, split, runners, note=lambda note: notes.append(json.loads(json.dumps(note))))
    findings, unread = tuner.check_signals()
    assert not unread and [one.pictures for one in findings] == [2, 2, 2]
    assert {one.name: one.verdict for one in findings}["encoder saliency"] in (
        "ignores the words",
        "inverted",
        "mostly position",
    )
    results = tuner.race()
    assert set(results) == set(runners) and all(len(own) == 2 for own in results.values())
    for row, place in zip(split.choosing, range(2), strict=True):
        inputs = proc.apply_chat_template(
            [{"role": "user", "content": [{"type": "image", "image": row.open()[0]}, {"type": "text", "text": row.text}]}],
            add_generation_prompt=True, tokenize=True, return_dict=True, processor_kwargs={"return_tensors": "pt"},
        )  # fmt: skip
        full = answer(model, inputs, 3)
        for runner in runners:
            with runner.variant.pruner(runner.keep_ratio)(model, proc):
                alone = agreement(full, answer(model, inputs, 3, along=full.ids))
            assert results[runner][place].changed == (not alone.same)
            assert results[runner][place].kl == pytest.approx(alone.kl, rel=1e-3, abs=1e-6)
    finalists = tuner.finalists(results)
    reported, groups = tuner.report(finalists)
    times = tuner.clock(finalists)
    assert len(groups) == 1 and set(times) == {"full", *(one.key for one in finalists)}
    again = Tuner(None_of(asker), split, runners, notes)
    assert again.check_signals()[0] == findings and again.race() == results
    assert again.report(finalists) == (reported, groups) and again.clock(finalists) == times


class None_of:
    """An asker that must not be asked."""

    def __init__(self, asker):
        self.adapter = asker.adapter


def png(image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tune")
    (path / "pictures").mkdir()
    pictures, questions = load_demo()
    for name, image in pictures.items():
        image.save(path / name)
    for name, image in list(pictures.items())[:2]:
        image.save(path / "pictures" / name)
    rows = [{"image": one.picture, "question": one.question} for one in {one.picture: one for one in questions}.values()]
    (path / "broken.jpg").write_bytes((path / rows[0]["image"]).read_bytes()[:400])
    (path / "one.jsonl").write_text(2 * (json.dumps(rows[0]) + "\n"))
    (path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"image": "broken.jpg", "question": "?"}]))
    return path


@pytest.fixture
def here(folder, monkeypatch, capfd):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "400")
    threads = torch.get_num_threads()

    def run(*arguments) -> subprocess.CompletedProcess:
        monkeypatch.setattr(sys, "argv", ["ptp", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        return subprocess.CompletedProcess(arguments, stopped.value.code or 0, *capfd.readouterr())

    yield run
    torch.set_num_threads(threads)


SMALL = ("--methods", "random:window=112,cdpruner:window=112", "--keep", "0.75,0.25", "--threads", "1", "--max-new-tokens", "4")


def test_from_pictures_to_tuned_json_and_into_every_command(folder, here, monkeypatch):
    monkeypatch.setattr("ptp.cli.bench.TILE_COUNTS", (1,))
    result = here("tune", "--data", "q.jsonl", *SMALL, "--out", "tuned.json")
    assert result.returncode == 0, result.stderr
    assert "Left out 1 bad rows, the first: row 3: Picture 'broken.jpg' is damaged" in result.stdout
    assert "encoder saliency: " in result.stdout and "at least 598 pictures" in result.stdout
    data = json.loads((folder / "tuned.json").read_text())
    assert [one["share"] for one in data["trade_offs"]] == [0.75, 0.25] and not data["proven"]
    assert data["model"].startswith("ptp-tiny ") and data["data"].startswith("q.jsonl ") and data["about"]["versions"]["torch"]
    assert data["bound"]["confidence"] == 0.95 and len(data["signals"]) == 3 and data["about"]["machine"]
    assert {"row", "reason"} == set(json.loads((folder / "tuned.bad.jsonl").read_text()))
    assert (folder / "tuned.png").read_bytes().startswith(b"\x89PNG")
    notes = (folder / "tuned.notes.jsonl").read_bytes()
    again = here("tune", "--data", "q.jsonl", *SMALL, "--out", "tuned.json")
    assert again.stdout == result.stdout and (folder / "tuned.notes.jsonl").read_bytes() == notes, "nothing is asked again"
    cut = notes[: len(notes) * 2 // 3]
    (folder / "tuned.notes.jsonl").write_bytes(cut)
    assert here("tune", "--data", "q.jsonl", *SMALL, "--out", "tuned.json").returncode == 0, "stopped at any byte it goes on"
    assert (folder / "tuned.notes.jsonl").read_bytes().startswith(cut[: cut.rfind(b"\n")])
    other = here("tune", "--data", "q.jsonl", *SMALL, "--limit", "3", "--out", "tuned.json")
    assert other.returncode == 2 and "was made with limit None, not 3" in other.stderr

    with pytest.warns(UserWarning, match="not shown to change at most 1 %"):
        pruner = ptp.load_pruner("tuned.json")
    chosen = json.loads((folder / "tuned.json").read_text())["pruner"]
    assert type(pruner) is ptp.METHODS[chosen["name"].split(":")[0]] and pruner.keep_ratio == chosen["keep_ratio"]
    model, _ = ptp.load()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        ptp.load_pruner("tuned.json", model)
    assert len(told) == 1, "it is the model that it was tuned on"
    picture = next(iter(load_demo()[0]))
    for command in (
        ("run", picture, "-q", "Read the red circle.", "--json"),
        ("eval", "--data", "q.jsonl", "--limit", "2", "--threads", "1", "--out", "e.json"),
        ("bench", "--model", ptp.tiny.WEIGHTS, "--tiles", "2", "--rounds", "2", "--threads", "1", "--out", "b.json"),
    ):
        used = here(*command, "--settings", "tuned.json")
        assert used.returncode == 0, used.stderr
        assert used.stderr.count("These settings were not shown") == 1
        if command[0] == "run":
            about = json.loads(used.stdout)["settings"]
            assert (about["method"], about["keep_ratio"]) == (chosen["name"], chosen["keep_ratio"])
        else:
            rows = json.loads((folder / command[-1]).read_text())["rows"]
            assert (rows[1]["method"], rows[1]["keep_ratio"]) == (chosen["name"], chosen["keep_ratio"])
        refused = here(*command, "--settings", "tuned.json", "--keep", "0.3")
        assert refused.returncode == 2 and "--keep does not go with --settings" in refused.stderr


def test_pictures_alone_are_asked_generic_questions(folder, here):
    result = here("tune", "--pictures", "pictures", "--methods", "random:seed=1", "--keep", "0.5", "--threads", "1",
                  "--out", "p.json", "--max-new-tokens", "2")  # fmt: skip
    assert result.returncode == 0, result.stderr
    data = json.loads((folder / "p.json").read_text())
    assert data["questions"] == {"choosing": 3, "reporting": 3, "bad": 0} and len(GENERIC) == 3
    assert data["bound"]["name"] == "Hoeffding-Bentkus over pictures" and data["bound"]["pictures"] == 1


def write(path, **changes):
    good = {"ptp_tuned": 1, "model": "other 0123", "shape": {"model_type": "x", "layers": 2, "parameters": 3}, "proven": True,
            "max_change": 0.01, "pruner": {"name": "random", "keep_ratio": 0.5}}  # fmt: skip
    path.write_text(json.dumps(good | changes))
    return path


def test_another_model_is_a_warning_of_one_line(tmp_path, here, folder):
    path = write(tmp_path / "t.json")
    with pytest.warns(UserWarning, match="tuned on other 0123, not on one of type internvl with 6 layers") as told:
        ptp.load_pruner(path, ptp.load()[0])
    assert len(told) == 1 and read_tuned(path).doubts("elsewhere 0123") == [], "the weights count, not where they lie"
    result = here("run", next(iter(load_demo()[0])), "-q", "What?", "--settings", path, "--json")
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("ptp: ")]  # torchao may talk, too
    assert result.returncode == 0 and line.startswith("ptp: These settings were tuned on other 0123, not on ptp-tiny ")


def test_the_page_takes_it_as_written(tmp_path, monkeypatch):
    """The Python of docs/tuning.md, behind a prompt; a warning would fail it."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs/tuning.md").read_text(), re.MULTILINE | re.DOTALL)
    model, processor = ptp.load()
    picture = draw_scene(np.random.default_rng(0), (4, 3)).image
    write(tmp_path / "tuned.json", shape=shape_of(model))
    monkeypatch.chdir(tmp_path)
    names = {"inputs": encode_prompt(processor, [picture], "Read the red circle.", model)}
    with warnings.catch_warnings(action="error", category=UserWarning):
        exec(code, names)
    assert names["trace"].visual_tokens == (208, 104)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ptp_tuned": 9}, "has format 9, this version reads 1"), ({"pruner": None}, "is not a file of `ptp tune`"),
        ({"pruner": {"name": "magic", "keep_ratio": 0.5}}, "made by ptp another version and does not fit this version: Method"),
        ({"pruner": {"name": "random", "keep_ratio": 5}}, "keep_ratio must be in"), ({"shape": 3}, "is not a file of"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_one_clear_line(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        ptp.load_pruner(write(tmp_path / "t.json", **changes))
    (tmp_path / "mine.json").write_text("[1]")
    for name, told in (("mine.json", "is not a file of `ptp tune`"), ("none.json", "cannot be read")):
        with pytest.raises(ValueError, match=told):
            ptp.load_pruner(tmp_path / name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Pass --data FILE with questions"), (("--data", "q.jsonl", "--pictures", "pictures"), "and not both"),
        (("--data", "q.jsonl", "--max-change", "1"), "--max-change must be in (0, 1), got 1.0"),
        (("--data", "q.jsonl", "--methods", "magic"), "Method must be one of"),
        (("--data", "none.jsonl"), "does not exist"), (("--pictures", "q.jsonl"), "--pictures must be a directory"),
        (("--data", "q.jsonl", "--keep", "0"), "keep_ratio must be in (0, 1]"),
        (("--data", "q.jsonl", "--keep", "0.01", "--methods", "fastv:prune_layer=2"), "No method can average 0.01"),
        (("--data", "one.jsonl"), "different pictures"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_leaves_nothing_behind(here, folder, arguments, message):
    before = set(folder.iterdir())
    result = here("tune", "--threads", "1", *arguments, "--out", "none.json")
    assert result.returncode == 2 and message in result.stderr and len(result.stderr.splitlines()) == 1
    assert set(folder.iterdir()) == before
