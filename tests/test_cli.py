"""The command as a user runs it, bad input included."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ptp.adapters import REFUSED
from ptp.cli import main
from ptp.methods import METHODS
from ptp.tiny.demo import load_demo
from ptp.tiny.drawing import draw_scene

QUESTION = ["-q", "What is on the red circle?"]


def ptp(*arguments, cwd: Path, file_size: int | None = None) -> subprocess.CompletedProcess:
    """Run the command in a process of its own; no file may grow beyond `file_size` bytes, as on a full disk."""
    environment = {"OMP_NUM_THREADS": "2", **os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "160"}
    return subprocess.run(
        [sys.executable, "-m", "ptp", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        timeout=300,
        preexec_fn=file_size and (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))),
    )


@pytest.fixture
def here(folder, monkeypatch, capfd):
    """Run the command in this process, in `folder`: most of a process of its own is importing torch."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "160")
    threads = torch.get_num_threads()

    def run(*arguments) -> subprocess.CompletedProcess:
        monkeypatch.setattr(sys, "argv", ["ptp", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        return subprocess.CompletedProcess(arguments, stopped.value.code or 0, *capfd.readouterr())

    yield run
    torch.set_num_threads(threads)  # some commands set their own


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with one picture of every kind that people have."""
    path = tmp_path_factory.mktemp("pictures")
    image = draw_scene(np.random.default_rng(0), (4, 3)).image
    image.save(path / "good.jpg")
    image.convert("CMYK").save(path / "cmyk.jpg")
    Image.fromarray(np.asarray(image.convert("L"), np.uint16) * 257).save(path / "16bit.png")
    image.convert("RGBA").save(path / "alpha.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(path / "rotated.jpg", exif=exif)
    (path / "empty.jpg").write_bytes(b"")
    (path / "text.jpg").write_text("no picture")
    (path / "truncated.jpg").write_bytes((path / "good.jpg").read_bytes()[:3000])
    Image.new("RGB", (1, 1)).save(path / "1x1.png")
    Image.new("RGB", (3000, 10)).save(path / "long.png")
    Image.new("1", (15_000, 15_000)).save(path / "huge.png")
    (path / "taken.html").write_text("mine")
    (path / "taken.json").write_text("mine")
    (path / "directory").mkdir()
    unknown = path / "unknown"
    unknown.mkdir()
    (unknown / "config.json").write_text('{"model_type": "bert"}')
    unheard = path / "unheard"
    unheard.mkdir()
    (unheard / "config.json").write_text('{"model_type": "no-such-model"}')
    refused = path / "refused"
    refused.mkdir()
    (refused / "config.json").write_text('{"model_type": "instructblip"}')
    incomplete = path / "incomplete"
    incomplete.mkdir()
    weights = Path(__file__).parents[1] / "src/ptp/tiny/weights"
    (incomplete / "config.json").write_text((weights / "config.json").read_text())
    return path


BAD = {
    "missing": (["none.jpg"], "does not exist"),
    "a directory": (["directory"], "is a directory"),
    "empty": (["empty.jpg"], "is empty"),
    "no picture": (["text.jpg"], "not a picture"),
    "truncated": (["truncated.jpg"], "is damaged"),
    "1x1": (["1x1.png"], "at least 8 pixels"),
    "too long": (["long.png"], "at most 200 times longer"),
    "a bomb": (["huge.png"], "million pixels"),
    "keep 0": (["good.jpg", "--keep", "0"], "keep_ratio must be in (0, 1]"),
    "keep 1.1": (["good.jpg", "--keep", "1.1"], "keep_ratio must be in (0, 1]"),
    "keep nan": (["good.jpg", "--keep", "nan"], "keep_ratio must be in (0, 1]"),
    "keep word": (["good.jpg", "--keep", "half"], "--keep"),
    "alpha": (["good.jpg", "--alpha", "1.5"], "alpha must be in [0, 1]"),
    "layer": (["good.jpg", "--prune-layer", "6"], "prune_layer must be in [0, 5]"),
    "region": (["good.jpg", "--region", "magic"], "region must be one of thumbnail_attention"),
    "method": (["good.jpg", "--method", "magic"], "Method must be one of pyramid, random"),
    "methods": (["good.jpg", "--method", "pyramid,fastv"], "got 'pyramid,fastv'"),
    "setting": (
        ["good.jpg", "--method", "fastv:alpha=1"],
        "Settings of fastv are window, keep_structure, prune_layer, got 'alpha=1'",
    ),
    "setting without value": (["good.jpg", "--method", "fastv:prune_layer"], "Write one as fastv:NAME=VALUE"),
    "setting of a wrong type": (
        ["good.jpg", "--method", "fastv:prune_layer=1.5"],
        "Setting prune_layer of fastv must be a whole number, got '1.5'",
    ),
    "setting out of range": (["good.jpg", "--method", "pyramid:alpha=2"], "pyramid:alpha=2: alpha must be in [0, 1], got 2"),
    "setting of few choices": (
        ["good.jpg", "--method", "pyramid:relevance=words"],
        "relevance of pyramid must be one of attention, similarity, both or none, got 'words'",
    ),
    "setting given twice": (["good.jpg", "--method", "pyramid:alpha=0", "--alpha", "1"], "alpha is given twice, by --alpha"),
    "setting twice in a word": (["good.jpg", "--method", "pyramid:alpha=0:alpha=1"], "alpha of pyramid is given twice in"),
    "weight of the instruction where there is none": (
        ["good.jpg", "--method", "hired", "--alpha", "0.2"],
        "--alpha does not apply to method 'hired'",
    ),
    "setting of another method": (["good.jpg", "--method", "random", "--alpha", "0.5"], "does not apply to method 'random'"),
    "device": (["good.jpg", "--device", "tpu"], "device must be"),
    "absent device": (["good.jpg", "--device", "cuda:99"], "is not there"),
    "dtype": (["good.jpg", "--dtype", "int3"], "dtype must be one of float32"),
    "refused by name": (["good.jpg", "--model", "refused"], "'instructblip' is not supported: its visual tokens are learned"),
    "unsupported model": (["good.jpg", "--model", "unknown"], "'bert' is not supported. Families that work: InternVL"),
    "unheard-of model": (["good.jpg", "--model", "unheard"], "no-such-model"),
    "incomplete model": (["good.jpg", "--model", "incomplete"], "is incomplete: tokenizer_config.json"),
    "no model": (["good.jpg", "--model", "./nowhere"], "neither a directory here nor"),
    "page exists": (["good.jpg", "--html", "taken.html"], "Pass --force"),
    "page cannot be written": (["good.jpg", "--html", "nowhere/out.html"], "cannot be written"),
    "page is a directory": (["good.jpg", "--html", "directory"], "is a directory"),
    "unknown option": (["good.jpg", "--nonsense"], "--nonsense"),
}


OTHER = {
    "no question": (["run", "good.jpg"], "Pass one with -q"),
    "eval task": (["eval", "--tasks", "singing"], "--tasks must be among read, color"),
    "eval method": (["eval", "--methods", "magic"], "Method must be one of pyramid, random"),
    "eval setting": (
        ["eval", "--methods", "pyramid:beta=1"],
        "Settings of pyramid are window, ",
    ),
    "eval value": (["eval", "--methods", "pyramid:alpha=2"], "alpha must be in"),
    "eval ratios": (["eval", "--keep", "0.5,many"], "--keep must be numbers"),
    "eval match": (["eval", "--match", "median"], "--match must be one of final, average"),
    "eval split": (["eval", "--split", "train"], "--split must be one of"),
    "eval results": (["eval", "--out", "taken.html"], "--out must end in .json"),
    "eval results exist": (["eval", "--out", "taken.json"], "Pass --force"),
    "bench preset": (["bench", "--preset", "huge"], "--preset must be one of tiny, 100m"),
    "bench method": (["bench", "--methods", "magic"], "Method must be one of pyramid, random"),
    "bench keep": (["bench", "--keep", "0"], "keep_ratio must be in"),
    "bench match": (["bench", "--match", "median"], "--match must be one of final, average"),
    "bench pictures": (["bench", "--pictures", "page,cats"], "--pictures must be of documents, photographs, page"),
    "bench pictures of two methods": (
        ["bench", "--pictures", "page", "--methods", "pyramid,fastv", "--keep", "0.5"],
        "--pictures measures one of --methods, got 2",
    ),
    "bench pictures and ratios": (["bench", "--pictures", "page"], "--pictures measures one of --keep, got 3"),
    "bench pictures exist": (
        ["bench", "--preset", "tiny", "--pictures", "page", "--keep", "0.5", "--out", "taken.json"],
        "has no measurements of this. Pass --force",
    ),
    "bench results": (["bench", "--out", "taken.html"], "--out must end in .json"),
    "demo page exists": (["demo", "--html", "taken.html"], "Pass --force"),
    "unknown command": (["sing"], "sing"),
}
CASES = {name: (["run", *arguments, *QUESTION], message) for name, (arguments, message) in BAD.items()} | OTHER


def assert_refused(case: str, code: int, out: str, err: str) -> None:
    """One line on stderr, exit code 2."""
    lines = err.strip().splitlines()
    assert code == 2 and not out, out + err
    assert len(lines) == 1 and lines[0].startswith("ptp: ") and CASES[case][1] in lines[0], err


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line_and_exit_code_2(folder, here, case):
    """Nothing in the folder may change."""
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    result = here(*CASES[case][0])
    assert_refused(case, result.returncode, result.stdout, result.stderr)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize("case", ["missing", "unknown command"])
def test_nothing_that_is_imported_adds_to_the_line(folder, case):
    result = ptp(*CASES[case][0], cwd=folder)
    assert_refused(case, result.returncode, result.stdout, result.stderr)


@pytest.mark.parametrize("name", ["good.jpg", "cmyk.jpg", "16bit.png", "alpha.png", "rotated.jpg"])
def test_pictures_of_every_kind_run(folder, here, name):
    arguments = ("run", name, *QUESTION, "--json", "--max-new-tokens", 4)
    result = ptp(*arguments, cwd=folder) if name == "good.jpg" else here(*arguments)
    assert result.returncode == 0, result.stderr
    data = json.loads(result.stdout)
    assert data["visual_tokens"] == [208, 104] and len(data["trace"]["images"][0]["kept"]) == 104
    assert data["trace"]["images"][0]["grid"] == [4, 3], "EXIF rotation is applied"
    assert data["cache_bytes"][1] < data["cache_bytes"][0]


INTERRUPTED = """
import os, signal, sys, threading
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests themselves run in the background
import ptp.cli
sys.argv = ["ptp", "eval", "--samples", "100000", "--out", "never.json"]
threading.Timer(5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
ptp.cli.main()
"""


def test_ctrl_c_ends_cleanly(folder):
    result = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, cwd=folder, timeout=120)
    assert result.returncode == 130 and result.stderr.strip() == "ptp: interrupted"
    assert not (folder / "never.json").exists()


WHILE_IMPORTING = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
import ptp.cli
ptp.cli.main()
"""


def test_ctrl_c_ends_cleanly_while_torch_is_imported(folder):
    result = subprocess.run([sys.executable, "-c", WHILE_IMPORTING], capture_output=True, text=True, cwd=folder, timeout=120)
    assert result.returncode == 130 and result.stderr.strip() == "ptp: interrupted"


def test_a_page_is_written_escaped_and_self_contained(folder, here):
    question = 'What is on the <b>red</b> circle? "&'
    result = here("run", "good.jpg", "-q", question, "--html", "page.html", "--keep", "0.2", "--max-new-tokens", 4)
    assert result.returncode == 0, result.stderr
    assert "208 -> 42 visual tokens" in result.stdout
    page = (folder / "page.html").read_text()
    assert "<b>red" not in page and "&lt;b&gt;red&lt;/b&gt;" in page
    assert "<script" not in page and "http://" not in page and "https://" not in page
    for title in ("Kept tokens", "Tile budgets", "Region saliency", "Token saliency", "Instruction", "Fused"):
        assert page.count(f"<figcaption>{title}") == 1
    assert here("run", "good.jpg", *QUESTION, "--html", "page.html").returncode == 2
    assert here("run", "good.jpg", *QUESTION, "--html", "page.html", "--force").returncode == 0


def test_a_method_with_settings_is_written_as_everywhere(here):
    made = ["run", "good.jpg", *QUESTION, "--json", "--max-new-tokens", 2]
    data = json.loads(here(*made, "--method", "fastv:prune_layer=1").stdout)
    assert data["settings"]["prune_layer"] == 1 and data["settings"]["method"] == "fastv:prune_layer=1"
    data = json.loads(here(*made, "--method", "pyramid:alpha=0:relevance=none", "--prune-layer", 2).stdout)
    assert (data["settings"]["alpha"], data["settings"]["relevance"], data["settings"]["prune_layer"]) == (0, None, 2)


def test_without_a_picture_nothing_is_pruned_and_it_says_so(here):
    result = here("run", *QUESTION, "--max-new-tokens", 4)
    assert result.returncode == 0 and "nothing was pruned" in result.stdout


def test_eval_writes_its_table(folder, here):
    result = here("eval", "--samples", 3, "--keep", "1.0,0.5", "--out", "small.json")
    assert result.returncode == 0, result.stderr
    data = json.loads((folder / "small.json").read_text())
    kept = {(row["method"], row["keep_ratio"]): row["kept"] for row in data["rows"]}
    assert set(kept) == {("full", 1), ("blank", 1), ("majority", 0), ("pyramid", 0.5), ("random", 0.5), ("downsample", 0.5)}
    assert abs(kept["pyramid", 0.5] - 0.5) < 0.02 and abs(kept["random", 0.5] - 0.5) < 0.02 and kept["downsample", 0.5] <= 0.5
    assert "| pyramid | 0.5 |" in (folder / "small.md").read_text()
    assert (folder / "small.csv").exists() and (folder / "small.png").exists()


def test_eval_of_a_directory_of_models_measures_each_of_them(folder):
    import shutil

    from ptp.tiny import WEIGHTS

    for name in ("first", "second"):
        shutil.copytree(WEIGHTS, folder / "several" / name)
    settings = ["eval", "--samples", 2, "--keep", "0.5", "--methods", "random", "--tasks", "read"]
    result = ptp(*settings, "--model", "several", "--out", "each.json", cwd=folder)
    assert result.returncode == 0, result.stderr
    assert [result.stdout.count(f"several/{name}\n") for name in ("first", "second")] == [1, 1]
    files = [json.loads((folder / f"each-{name}.json").read_text()) for name in ("first", "second")]
    first, second = ([cell["right"] for cell in file["cells"]] for file in files)
    assert first == second and len(first) == 3
    assert not (folder / "each.json").exists()


INTERRUPTED_EVAL = """
import os, signal, sys
import ptp.cli
from ptp.evaluation import Examiner
signal.signal(signal.SIGINT, signal.default_int_handler)
original, cells = Examiner.fill, []
def fill(*arguments):
    cells.append(1)
    if len(cells) == 3:
        os.kill(os.getpid(), signal.SIGINT)
    original(*arguments)
Examiner.fill = fill
sys.argv = ["ptp", "eval", "--samples", "3", "--keep", "0.5", "--methods", "pyramid", "--out", "stopped.json"]
ptp.cli.main()
"""


def test_an_eval_stopped_by_ctrl_c_or_a_full_disk_resumes_and_ends_with_the_same_numbers(folder, here):
    def numbers(name: str) -> list[dict]:
        cells = json.loads((folder / name).read_text())["cells"]
        return [{key: value for key, value in cell.items() if key != "seconds"} for cell in cells]

    stopped = subprocess.run([sys.executable, "-c", INTERRUPTED_EVAL], capture_output=True, text=True, cwd=folder, timeout=200)
    assert stopped.returncode == 130 and stopped.stderr.strip().splitlines()[-1] == "ptp: interrupted"
    half = numbers("stopped.json")
    assert len(half) == 2
    settings = ["eval", "--samples", 3, "--keep", "0.5", "--methods", "pyramid"]
    refused = here(*settings, "--seed", 1, "--out", "stopped.json")
    assert refused.returncode == 2 and "was made with seed 0, not 1" in refused.stderr and numbers("stopped.json") == half
    full = ptp(*settings, "--out", "stopped.json", cwd=folder, file_size=(folder / "stopped.json").stat().st_size)
    assert full.returncode == 2 and "File too large" in full.stderr and len(full.stderr.splitlines()) == 1
    assert numbers("stopped.json") == half and not list(folder.glob(".stopped*")), "what was finished stays readable"
    assert here(*settings, "--out", "stopped.json").returncode == 0
    assert here(*settings, "--out", "whole.json").returncode == 0
    assert numbers("stopped.json") == numbers("whole.json") and numbers("whole.json")[:2] == half


def test_methods_lists_every_method(here):
    result = here("methods")
    assert result.returncode == 0 and all(f"{name} " in result.stdout for name in METHODS)


def test_the_demo_pictures_are_what_the_recipe_draws(tmp_path):
    from ptp.tiny.demo import draw

    draw(tmp_path)
    pictures, questions = load_demo()
    assert json.loads((tmp_path / "questions.json").read_text())[0]["question"] == questions[0].question
    for name, image in pictures.items():
        again = Image.open(tmp_path / name).convert("RGB")
        assert image.size == again.size
        difference = np.abs(np.asarray(image, np.int16) - np.asarray(again, np.int16))
        assert difference.mean() < 1  # libjpeg versions may differ by a shade


def test_families_and_methods_are_listed(here):
    for command, names in (("models", ["InternVL", "Gemma 3", "qwen3_vl", "docs/add_a_model.md"]), ("methods", list(METHODS))):
        result = here(command)
        assert result.returncode == 0 and all(name in result.stdout for name in names)


def test_families_as_json(here):
    """What cannot be pruned is there, too: learned queries stand for no place, cross-attention has no visual tokens."""
    result = here("models", "--json")
    listed = json.loads(result.stdout)
    assert result.returncode == 0 and listed.keys() == {"families", "refused"}
    (gemma,) = (one for one in listed["families"] if "gemma3" in one["model_types"])
    assert gemma == {
        "family": "Gemma 3", "model_types": ["gemma3"], "tiling": "one tile each; so are crops", "saliency": "received",
        "limits": "",
    }  # fmt: skip
    assert any("prune_layer" in one["limits"] for one in listed["families"] if "qwen3_5" in one["model_types"])
    reasons = {one["model_type"]: one["reason"] for one in listed["refused"]}
    assert "Q-Former" in reasons["instructblip"] and "cross-attention" in reasons["mllama"]
    assert all(reasons[name].startswith("not built yet (") for name in ("llama4", "kimi_k25", "cohere2_vision"))
    taken = {model_type for one in listed["families"] for model_type in one["model_types"]}
    assert taken and not taken & reasons.keys()
    shown = " ".join(here("models").stdout.split())
    assert f"mllama, idefics, pix2struct: {reasons['mllama']}" in shown


def test_what_is_refused_by_name_is_a_model_type_of_transformers():
    """A misspelt one would never be asked for."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    assert not {name for name in REFUSED if name not in CONFIG_MAPPING_NAMES}


def test_bench_of_pictures_goes_on_where_it_was_interrupted(folder, here):
    """Two rounds of a page, one of a photograph: the second command adds the round that is missing, and nothing else."""
    command = ("bench", "--preset", "tiny", "--pictures", "page,photograph", "--keep", 0.25, "--threads", 1, "--rounds", 2)
    whole = here(*command, "--out", "first.json")
    assert whole.returncode == 0 and "again / rest" in whole.stdout, whole.stderr
    data = json.loads((folder / "first.json").read_text())
    assert (folder / "first.png").read_bytes().startswith(b"\x89PNG") and "| page | 112 | 28 | 7 | 4 |" in (
        folder / "first.md"
    ).read_text()
    for times in ("without", "with_all", "again", "rest"):
        data["pictures"]["photograph"][times].pop()
        data["pictures"]["page"][times] = [1.0, 3.0]
    (folder / "first.json").write_text(json.dumps(data))
    assert here(*command, "--out", "first.json").returncode == 0
    after = json.loads((folder / "first.json").read_text())["pictures"]
    assert after["page"]["without"] == [1.0, 3.0] and len(after["photograph"]["rest"]) == 2
    assert after["photograph"]["without"][0] == data["pictures"]["photograph"]["without"][0]
    other = here(*command[:-1], 3, "--out", "first.json")
    assert other.returncode == 2 and "has no measurements of this" in other.stderr
