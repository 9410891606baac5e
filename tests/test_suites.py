"""The suites of `ptp eval --suite`, as far as they need no lmms-eval: what they are and what their table says."""

import subprocess
import sys

import pytest

from ptp.evaluation.lmms.requests import prompt_of
from ptp.evaluation.lmms.run import score
from ptp.evaluation.lmms.suites import PAPER, SUITES, TELLING, Benchmark, benchmarks
from ptp.evaluation.lmms.table import markdown, means, overview, rows
from test_cli import folder, here  # noqa: F401


def test_the_papers_suite_has_the_ten_that_are_known():
    known = {"VizWiz", "POPE", "GQA", "AI2D", "MM-Vet", "SEED", "MME", "MMBench", "MMStar", "RealWorldQA"}
    assert {one.name for one in PAPER} == known | {"TextVQA"} and [one.name for one in PAPER if one.judge] == ["MM-Vet"]
    assert {one.name for one in TELLING} == {"OCRBench", "DocVQA", "ChartQA", "InfoVQA", "RefCOCO"}
    both = benchmarks("paper, telling,pope,mine")
    assert len(both) == len(PAPER) + len(TELLING) + 1 and both[-1] == Benchmark("mine", "mine")
    assert benchmarks("pope") == [one for one in SUITES["paper"] if one.task == "pope"]
    with pytest.raises(ValueError, match="--suite must be paper, telling, or tasks of lmms-eval"):
        benchmarks("paper,")


def test_a_score_is_the_benchmarks_metric_whatever_the_filter():
    given = {"exact_match,flexible-extract": 0.5, "exact_match_stderr,flexible-extract": 0.1, "other,none": 3.0}
    assert score(Benchmark("AI2D", "ai2d", ("exact_match",)), given) == 0.5
    assert score(Benchmark("MME", "mme", ("exact_match", "other")), given) == 3.5
    assert score(Benchmark("mine", "mine"), given) == 0.5, "the first"
    with pytest.raises(ValueError, match="Task 'mme' gives other, exact_match, not magic"):
        score(Benchmark("MME", "mme", ("magic",)), given)


def run(benchmark: str, method: str, keep: float, score: float, seconds: float) -> dict:
    spent = {"questions": 10, "tokens": 20, "before": 1000, "after": round(1000 * keep), "average": 800.0, "seconds": seconds}
    return {"benchmark": benchmark, "method": method, "keep_ratio": keep, "score": score, "spent": spent}


def test_the_table_sets_every_pruned_run_against_the_unpruned_one():
    runs = [
        run("POPE", "full", 1.0, 0.8, 2.0), run("POPE", "pyramid", 0.5, 0.6, 1.0), run("GQA", "full", 1.0, 50.0, 2.0),
        run("GQA", "pyramid", 0.5, 60.0, 1.0), run("MME", "full", 1.0, 0.0, 2.0), run("MME", "pyramid", 0.5, 0.0, 1.0),
        run("AI2D", "pyramid", 0.5, 0.3, 1.0),
    ]  # fmt: skip
    table = rows(runs, PAPER)
    assert [row["benchmark"] for row in table] == ["POPE", "GQA", "MME"], "AI2D has not been asked unpruned"
    pope = table[0]
    assert pope["difference"] == pytest.approx(-0.2) and pope["relative"] == pytest.approx(0.75) and pope["paper"] is None
    assert pope["visual_tokens"] == [100, 50, 80] and pope["ms_per_question"] == [200, 100]
    assert means(table) == [{"method": "pyramid", "keep_ratio": 0.5, "benchmarks": 2, "relative": pytest.approx(0.975)}]
    line = ["POPE", "pyramid", "0.5", "", "0.8", "0.6", "-0.2", "75.0 %", "100 -> 50 (average 80)", "200 -> 100"]
    assert overview(table)[1] == line and overview(table)[-1][:3] == ["mean of 2", "pyramid", "0.5"]
    text = markdown(table, PAPER, ["MM-Vet is scored by a judge."])
    assert "| POPE | pyramid |" in text and "- MME (`mme`): perception and cognition, summed." in text and "- MM-Vet is" in text


def test_what_is_no_picture_is_refused_by_its_task():
    turn = [{"role": "user", "content": [{"type": "video", "url": "clip.mp4"}]}]
    with pytest.raises(ValueError, match="Task 'mvbench' shows video"):
        prompt_of("mvbench", turn)
    words = [{"role": "system", "content": [{"type": "text", "text": "Old."}]}, {"role": "user", "content": []}]
    assert [one["role"] for one in prompt_of("t", words, "New.").messages] == ["system", "user"]
    assert prompt_of("t", words, "New.").messages[0]["content"][0]["text"] == "New."


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "paper", "--metric", "anls"], "--metric does not go with --suite"),
        (["--suite", "paper", "--tasks", "read"], "--tasks does not go with --suite"),
        (["--suite", "paper", "--data", "x.csv"], "--suite does not go with --data"),
        (["--judge"], "--judge does not go with drawn"),
        (["--suite", ","], "--suite must be paper, telling"),
        (["--suite", "paper", "--out", "x.csv"], "--out must end in .json"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(here, arguments, message):  # noqa: F811
    result = here("eval", *arguments)
    assert result.returncode == 2 and message in result.stderr and len(result.stderr.splitlines()) == 1, result.stderr


def test_without_lmms_eval_it_is_named_and_nothing_needs_it_before(here, monkeypatch):  # noqa: F811
    monkeypatch.setitem(sys.modules, "lmms_eval", None)
    result = here("eval", "--suite", "paper", "--methods", "pyramid:published", "--keep", "0.5")
    lines = result.stderr.splitlines()
    assert result.returncode == 2 and len(lines) == 1 and "pip install 'pyramid-token-pruning[lmms]'" in lines[0]
    assert "MM-Vet (mmvet) is scored by a judge: left out without --judge." in result.stdout
    extras = "import sys, ptp.cli.app; sys.exit(bool({'lmms_eval', 'pyarrow'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", extras]).returncode == 0
