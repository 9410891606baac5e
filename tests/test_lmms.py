"""lmms-eval's own command line over local tasks, offline, pruned and not. It runs where lmms-eval is: `make test-lmms`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import families
import pytest
from conftest import prompt

from ptp import RandomPruner
from ptp.testing import FAMILIES, small_model, small_processor
from ptp.tiny.demo import load_demo

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed here; `make test-lmms` sets up an environment with it")

import yaml
from lmms_eval.api.instance import Instance

from ptp.evaluation.lmms.model import PtpModel

SAVED = ("llava-next", "smolvlm", "gemma3")
"""Families whose small processors can be saved without torchvision; the embedded model is an InternVL."""
TASKS = {
    "ptp_read": """
task: ptp_read
dataset_path: parquet
dataset_kwargs: {data_files: {test: PATH}}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.visual
doc_to_text: question
doc_to_target: answer
generation_kwargs: {max_new_tokens: 4, temperature: 0, do_sample: false}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true, ignore_case: true, ignore_punctuation: true}
""",
    "ptp_pope": """
task: ptp_pope
dataset_path: parquet
dataset_kwargs: {data_files: {test: PATH}}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.visual
doc_to_text: question
doc_to_target: answer
generation_kwargs: {max_new_tokens: 4, temperature: 0, do_sample: false}
process_results: !function utils.pope_process_results
metric_list:
  - {metric: pope_accuracy, aggregation: !function utils.pope_aggregate_accuracy, higher_is_better: true}
""",
}
UTILS = """
from lmms_eval.tasks.pope.utils import pope_aggregate_accuracy, pope_process_results

def visual(doc):
    return [doc["image"]]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Tasks in lmms-eval's format over the demo's pictures: its own questions, and yes-or-no ones for POPE's own scoring."""
    import datasets

    path = tmp_path_factory.mktemp("lmms")
    (path / "tasks").mkdir()
    pictures, questions = load_demo()
    rows = [{"image": pictures[one.picture], "question": one.question, "answer": one.answer} for one in questions]
    yes_no = [row for row in rows if row["answer"] in ("yes", "no")]
    about = {"ptp_read": rows, "ptp_pope": [{**row, "question_id": str(n), "category": "a"} for n, row in enumerate(yes_no)]}
    for name, own in about.items():
        features = datasets.Features({key: datasets.Value("string") for key in own[0]} | {"image": datasets.Image()})
        datasets.Dataset.from_list(own, features=features).to_parquet(path / f"{name}.parquet")
        (path / "tasks" / f"{name}.yaml").write_text(TASKS[name].replace("PATH", str(path / f"{name}.parquet")))
    (path / "tasks" / "utils.py").write_text(UTILS)
    for name in SAVED:
        small_model(FAMILIES[name]).save_pretrained(path / name)
        small_processor(FAMILIES[name]).save_pretrained(path / name)
    return path


def lmms_eval(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """lmms-eval's own command line."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hub"), "COLUMNS": "200"}
    command = [sys.executable, "-m", "lmms_eval", *arguments]
    made = {**os.environ, **offline, **environment}
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=made, timeout=900)


def found(folder: Path, task: str) -> tuple[dict, list[str]]:
    """The results of one run, and its answers in order."""
    (results,) = folder.rglob("*_results.json")
    (samples,) = folder.rglob(f"*_samples_{task}.jsonl")
    lines = sorted((json.loads(line) for line in samples.read_text().splitlines()), key=lambda line: line["doc_id"])
    return json.loads(results.read_text()), [line["filtered_resps"] for line in lines]


def test_its_own_command_line_runs_every_model_pruned_and_not(folder):
    """One process, a configuration for each: lmms-eval's `--config`. keep_ratio 1 answers as the unpruned model does."""
    settings = {"full": "method=full", "all": "method=pyramid,keep_ratio=1", "half": "method=pyramid:alpha=0.4,keep_ratio=0.5"}
    runs = []
    for name in ("tiny", *SAVED):
        where = "" if name == "tiny" else f"pretrained={folder / name},"
        for kind, own in settings.items():
            runs.append({"model": "ptp", "model_args": where + own, "tasks": "ptp_read,ptp_pope", "batch_size": "2"}
                        | {"device": "cpu", "include_path": str(folder / "tasks"), "log_samples": True}
                        | {"output_path": str(folder / "out" / f"{name}-{kind}")})  # fmt: skip
    (folder / "runs.yaml").write_text(yaml.safe_dump(runs))
    result = lmms_eval(folder, "--config", "runs.yaml")
    assert result.returncode == 0 and "Error during evaluation" not in result.stdout + result.stderr, result.stderr[-3000:]
    answers = {}
    for run in runs:
        place = Path(run["output_path"])
        data, read = found(place, "ptp_read")
        _, yes_no = found(place, "ptp_pope")
        answers[place.name] = read + yes_no
        whole, kept = (data["throughput"][name] for name in ("avg_visual_tokens", "avg_visual_tokens_kept"))
        assert kept == (whole if not place.name.endswith("half") else pytest.approx(whole / 2, rel=0.02)), place.name
        if place.name.startswith("tiny"):
            assert data["results"]["ptp_read"]["exact_match,none"] == 1
            assert data["results"]["ptp_pope"]["pope_accuracy,none"] == 1
    for name in ("tiny", *SAVED):
        assert answers[f"{name}-full"] == answers[f"{name}-all"]
    assert any(answers[f"{name}-full"] != answers[f"{name}-half"] for name in SAVED), "random weights feel it"


def test_its_short_form_runs_too(folder):
    """As the README has it: no configuration file."""
    script = Path(sys.executable).with_name("lmms-eval")
    command = [str(script), "--model", "ptp", "--model_args", "method=pyramid,keep_ratio=0.5", "--tasks", "ptp_read"]
    command += ["--include_path", "tasks", "--device", "cpu", "--output_path", "short", "--log_samples"]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hub")}
    result = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=offline, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "|ptp_read|" in result.stdout.replace(" ", "") and len(found(folder / "short", "ptp_read")[1]) == 9


def test_two_processes_share_the_questions(folder):
    """As on a machine with two GPUs: each has the model, and lmms-eval gathers the answers."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "lmms_eval"]
    command = [sys.executable, *torchrun, "--model", "ptp", "--model_args", "method=pyramid,keep_ratio=0.5,device=cpu"]
    command += ["--tasks", "ptp_read", "--include_path", "tasks", "--output_path", "two", "--log_samples"]
    made = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hub")}
    made |= {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=made, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    data, answers = found(folder / "two", "ptp_read")
    assert len(answers) == 9 and data["results"]["ptp_read"]["exact_match,none"] == 1
    assert data["throughput"]["total_gen_tokens"] == 2 * 5, "of nine questions this process answered five"


def asked(questions: list[tuple[list, str]], **settings) -> tuple[dict, list[Instance]]:
    """Documents and requests, as lmms-eval hands them over."""

    def to_messages(doc):
        parts = [{"type": "image", "url": image} for image in doc["images"]]
        return [{"role": "user", "content": [*parts, {"type": "text", "text": doc["question"]}]}]

    docs = [{"images": images, "question": question} for images, question in questions]
    meta = {"task": "t", "doc_id": 0, "repeats": 1}
    requests = [
        Instance("generate_until", ("", to_messages, settings, n, "t", "test"), 0, metadata=meta) for n in range(len(docs))
    ]
    return {"t": {"test": docs}}, requests


@pytest.mark.parametrize("batch", [1, 3])
def test_every_family_answers_as_it_does_alone(family, batch):
    """Pictures of several sizes, two in one question, none in another: batched, and against plain `generate`."""
    model, proc = families.model_of(family), families.processor_of(family)
    other = 0 if family.name == "internvl" else 1
    shown = [[families.picture(0)], [families.picture(other), families.picture(0)], []]
    questions = [(images, f"What is it, {n}?") for n, images in enumerate(shown)]
    ours = PtpModel.of(model, proc, batch)
    ours.task_dict, requests = asked(questions, max_new_tokens=4, do_sample=False)
    for pruner in (None, RandomPruner(keep_ratio=0.3)):
        ours.pruner, ours.spent = pruner, type(ours.spent)(ours.spent.default_factory)
        given = ours.generate_until(requests)
        expected, before = [], 0
        for images, question in questions:
            once = dict(tokenize=True, return_dict=True, processor_kwargs={"return_tensors": "pt"})
            inputs = proc.apply_chat_template(prompt(*images, question=question), add_generation_prompt=True, **once)
            if pruner is None:
                ids = model.generate(**inputs, max_new_tokens=4, do_sample=False)
            else:
                with pruner(model, proc) as trace:
                    ids = model.generate(**inputs, max_new_tokens=4, do_sample=False)
                before += trace.visual_tokens[0]
            expected.append(proc.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip())
        assert [one.text for one in given] == expected
        assert (ours.spent["t"].questions == 3 and pruner is None) or ours.spent["t"].before == before > ours.spent["t"].after


def test_stop_strings_end_an_answer_and_sampling_is_the_tasks_choice():
    from ptp.evaluation.lmms.requests import generation, until

    model, proc = families.model_of(FAMILIES["smolvlm"]), families.processor_of(FAMILIES["smolvlm"])
    ours = PtpModel.of(model, proc)
    ours.task_dict, requests = asked([([families.picture(0)], "What?")], max_new_tokens=6)
    (whole,) = ours.generate_until(requests)
    stop = whole.text[3]
    ours.task_dict, requests = asked([([families.picture(0)], "What?")], max_new_tokens=6, until=[stop, "\n\n"])
    (cut,) = ours.generate_until(requests)
    assert cut.text == whole.text[: whole.text.find(stop)].strip() and until({"until": "\n\n"}) == []
    greedy = {"max_new_tokens": 1024, "num_beams": 1, "do_sample": False}
    assert generation({}) == greedy == generation({"temperature": 0.2, "do_sample": False, "top_p": 1.0})
    assert generation({"temperature": 0.7, "top_p": 0.9, "max_new_tokens": 8}) == {
        "max_new_tokens": 8, "num_beams": 1, "do_sample": True, "temperature": 0.7, "top_p": 0.9,
    }  # fmt: skip


def test_an_error_of_generate_comes_out(monkeypatch):
    """lmms-eval's own classes log it and score an empty answer."""
    model, proc = families.model_of(FAMILIES["smolvlm"]), families.processor_of(FAMILIES["smolvlm"])
    ours = PtpModel.of(model, proc)
    ours.task_dict, requests = asked([([families.picture(0)], "What?")], max_new_tokens=2)
    monkeypatch.setattr(model, "generate", lambda **kwargs: (_ for _ in ()).throw(RuntimeError("broken")))
    with pytest.raises(RuntimeError, match="broken"):
        ours.generate_until(requests)


def test_what_it_cannot_do_is_refused_by_name():
    for arguments, message in (
        ({"method": "magic"}, "Method must be one of"), ({"keep_ratio": 0}, "keep_ratio must be in"),
        ({"keep": 0.5}, "model_args of ptp are pretrained, .*got keep"), ({"batch_size": "auto"}, "batch_size must be a whole"),
        ({"method": "pyramid:prune_layer=99"}, r"prune_layer must be in \[0, 5\]"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            PtpModel(device="cpu", **arguments)
    model, proc = families.model_of(FAMILIES["smolvlm"]), families.processor_of(FAMILIES["smolvlm"])
    ours = PtpModel.of(model, proc)
    ours.task_dict, requests = asked([(["clip.mp4"], "What?")])
    with pytest.raises(ValueError, match="Task 't' shows a picture as str"):
        ours.generate_until(requests)
    for method in (ours.loglikelihood, ours.generate_until_multi_round):
        with pytest.raises(NotImplementedError, match="Choose"):
            method([])


def suite(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """`ptp eval --suite` over the local tasks."""
    made = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hub"), "COLUMNS": "200"}
    command = [sys.executable, "-m", "ptp", "eval", "--suite", "ptp_read,ptp_pope", "--include-path", "tasks", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=made, timeout=300)


def test_a_suite_is_a_table_and_goes_on_where_it_was_stopped(folder):
    ask = ("--methods", "pyramid:published:prune_layer=1,random", "--keep", "0.5", "--out", "suite.json", "--threads", "1")
    result = suite(folder, *ask)
    assert result.returncode == 0, result.stderr[-2000:]
    data = json.loads((folder / "suite.json").read_text())
    assert [(row["benchmark"], row["method"]) for row in data["rows"]] == [
        (task, method) for task in ("ptp_read", "ptp_pope") for method in ("pyramid:published:prune_layer=1", "random")
    ]
    first = data["rows"][0]
    assert first["unpruned"] == 1 and first["visual_tokens"][:2] == [208, 104] and first["questions"] == 9
    assert first["relative"] == first["pruned"] and first["difference"] == pytest.approx(first["pruned"] - 1)
    runs = data["runs"]
    assert len(runs) == 6 and {run["method"] for run in runs} == {"full", "pyramid:published:prune_layer=1", "random"}
    assert runs[0]["config"]["task"] == "ptp_read" and data["about"]["versions"]["lmms-eval"]
    assert "| ptp_pope | random | 0.5 |" in (folder / "suite.md").read_text()
    journal = (folder / "suite.runs.jsonl").read_text().splitlines()
    (folder / "suite.runs.jsonl").write_text("\n".join(journal[:4]) + "\n" + journal[4][:50])
    again = suite(folder, *ask)
    assert again.returncode == 0 and (folder / "suite.runs.jsonl").read_text().splitlines()[:4] == journal[:4]
    scores = [[run["score"] for run in json.loads((folder / "suite.json").read_text())["runs"]], [run["score"] for run in runs]]
    assert scores[0] == scores[1]


STOPPED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
import ptp.cli
from ptp.evaluation.lmms.model import PtpModel
original, asked = PtpModel._answer, []
def answer(*arguments):
    asked.append(1)
    if len(asked) == 12:
        os.kill(os.getpid(), signal.SIGINT)
    return original(*arguments)
PtpModel._answer = answer
sys.argv = ["ptp", "eval", "--suite", "ptp_read", "--include-path", "tasks", "--methods", "random", "--keep", "0.5"]
sys.argv += ["--out", "stopped.json"]
ptp.cli.main()
"""


def test_ctrl_c_inside_lmms_eval_ends_in_one_line_and_keeps_what_was_finished(folder):
    made = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hub")}
    command = [sys.executable, "-c", STOPPED]
    stopped = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=made, timeout=300)
    assert stopped.returncode == 130 and stopped.stderr.strip().splitlines()[-1] == "ptp: interrupted", stopped.stderr[-2000:]
    _, *runs = (folder / "stopped.runs.jsonl").read_text().splitlines()
    assert [json.loads(run)["method"] for run in runs] == ["full"] and not (folder / "stopped.json").exists()


def test_a_benchmark_that_cannot_be_had_does_not_stop_the_others(folder):
    missing = TASKS["ptp_read"].replace("ptp_read", "ptp_gone").replace("PATH", str(folder / "gone.parquet"))
    (folder / "tasks" / "ptp_gone.yaml").write_text(missing)
    result = suite(folder, "--suite", "ptp_gone,ptp_read", "--methods", "random", "--keep", "0.5", "--limit", "2")
    assert result.returncode == 2 and "ptp: 2 of 4 runs failed, the first: ptp_gone" in result.stderr.splitlines()[-1]
    assert "ptp_read" in result.stdout
    unknown = suite(folder, "--suite", "magic", "--methods", "random", "--keep", "0.5")
    assert unknown.returncode == 2 and "lmms-eval has no task 'magic'" in unknown.stderr


def test_the_suites_tasks_and_metrics_are_lmms_evals():
    """Read from its own task descriptions: nothing is fetched."""
    import lmms_eval

    from ptp.evaluation.lmms.suites import SUITES

    folder = Path(lmms_eval.__file__).parent / "tasks"
    texts = [path.read_text() for path in folder.rglob("*.yaml")]
    for one in (one for listed in SUITES.values() for one in listed):
        own = [text for text in texts if f"task: {one.task}\n" in text.replace('"', "") + "\n"]
        assert own, one
        parents = [path.read_text() for path in folder.rglob("_default_template*") if f"include: {path.name}" in own[0]]
        assert all(f"metric: {metric}" in "".join([own[0], *parents]) for metric in one.metrics), one
