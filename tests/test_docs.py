"""The code of the documentation runs as written, its commands are taken, and its tables are those of docs/results."""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import typer
from transformers import CLIPVisionConfig, VipLlavaConfig, VipLlavaForConditionalGeneration

import ptp
from ptp.adapters import ADAPTERS
from ptp.bench.measure import encode_prompt
from ptp.bench.presets import FAMILY_PRESETS
from ptp.cli import main
from ptp.cli.app import app
from ptp.methods.parsing import parse_variant
from ptp.serving.vllm.settings import resolve
from ptp.testing import FAMILIES, SMALL, photo
from ptp.tiny.demo import load_demo
from ptp.tiny.drawing import draw_scene

ROOT = Path(__file__).parents[1]


PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OWN = ("docs/add_a_model.md", "docs/serving.md", "docs/tuning.md", "docs/vlmevalkit.md")
"""Pages whose Python has a test of its own."""
PRINTED = {
    "README.md": "208 -> 104 visual tokens",
    "docs/add_a_method.md": "208 -> 52 visual tokens",
    "docs/choosing.md": "the red circle",
    "docs/how_it_works.md": "0 of 13 tiles or pictures encoded, 13 from the cache",
    "docs/index.md": "208 -> 104 visual tokens",
    "docs/models.md": "",
    "docs/reproduce.md": "",
}
"""What the Python of each page prints, among other things."""


def blocks(page: str, *languages: str) -> list[str]:
    return [code for language, code in BLOCK.findall((ROOT / page).read_text()) if language in languages]


def commands(page: str) -> list[list[str]]:
    """Every command of the blocks that a shell would run (those that cog makes have no language), as words."""
    found, waiting = [], ""
    for line in "\n".join(blocks(page, "sh", "")).replace("\\\n", " ").splitlines():
        waiting += line + "\n"
        try:
            words = shlex.split(waiting, comments=True)
        except ValueError:  # a quotation goes on in the next line
            continue
        found, waiting = [*found, words] if words else found, ""
    assert not waiting, f"{page} has a command that does not end"
    return found


def test_every_block_is_of_a_kind_that_is_checked():
    used = {language for page in PAGES for language, _ in BLOCK.findall((ROOT / page).read_text())}
    assert used <= {"", "sh", "python", "json", "text", "bibtex"}, "of these text is output, and bibtex no code"


@pytest.mark.parametrize("page", [page for page in PAGES if page not in OWN and blocks(page, "python")])
def test_the_python_runs_as_written(page, capsys, monkeypatch, tmp_path):
    """Each page by itself, after the beginning that all share: a model, a prompt with a picture, a pruner."""
    picture = draw_scene(np.random.default_rng(0), (4, 3)).image
    picture.save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    model, processor = ptp.load()
    names = {"ptp": ptp, "model": model, "processor": processor, "pruner": ptp.PyramidPruner(keep_ratio=0.5)}
    names |= {"inputs": encode_prompt(processor, [picture], "Read the red circle.", model), "__name__": "documentation"}
    exec("\n".join(blocks(page, "python")), names)
    printed = capsys.readouterr().out
    assert PRINTED[page] in printed
    if "trace" in names:
        kept = 52 if page == "docs/add_a_method.md" else 104
        assert names["trace"].visual_tokens == (208, kept)
        assert names["output"].shape[1] > names["inputs"]["input_ids"].shape[1]
    if page == "docs/models.md":
        assert names["second"].shape[1] > names["first"].shape[1] + names["more"].shape[1]
    if page == "docs/reproduce.md":
        assert (names["pruner"].relevance, names["pruner"].prune_layer, names["pruner"].keep_ratio) == ("attention", 2, 0.5)


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)])
def test_the_commands_are_ones_that_the_programs_take(page):
    """What takes minutes, a network, a GPU or another environment is read by what would read it, and not run."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for words in commands(page):
        match Path(words[0]).name, *words[1:]:
            case ["ptp", name, *arguments]:
                group = typer.main.get_command(app)
                filled = ["100m" if argument == "$preset" else argument for argument in arguments]
                group.commands[name].make_context(name, filled)  # raises where an option or a value is none
            case ["make", target]:
                assert target in targets
            case ["pip", "install", "."]:
                pass
            case ["pip", "install", wanted]:
                name, extra = re.fullmatch(r"(\.|pyramid-token-pruning)\[(\w+)\]", wanted).groups()
                assert extra in extras
            case ["lmms-eval", "--model", "ptp", "--model_args", given, *_]:
                settings = dict(one.split("=", 1) for one in given.split(","))
                assert parse_variant(settings["method"]).pruner(float(settings["keep_ratio"]))
            case ["vllm", "serve", _, "--mm-processor-kwargs", given]:
                assert resolve(json.loads(given)["ptp"]).pruner.keep_ratio == 0.25
            case ["curl", _, "-H", _, "-d", given]:
                assert [part["type"] for part in json.loads(given)["messages"][0]["content"]] == ["image_url", "text"]
            case ["for", "preset", "in", *presets]:
                assert {preset.rstrip(";") for preset in presets[:-1]} <= {*FAMILY_PRESETS, *measured()}
            case ["python", script, "--data", _, "--model", _]:
                assert f"as `{script}`" in (ROOT / page).read_text(), "the page itself has it"
            case ["done"]:
                pass
            case _:
                pytest.fail(f"{page} has a command that no test reads: {' '.join(words)}")


def measured() -> set[str]:
    return {path.stem for path in (ROOT / "docs/results/models").glob("*.json")}


def test_ptp_run_of_the_start_page_runs(tmp_path, monkeypatch, capsys):
    (words,) = [words for words in commands("docs/index.md") if words[1] == "run" and "--model" not in words]
    draw_scene(np.random.default_rng(0), (4, 3)).image.save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code and "208 -> 104" in capsys.readouterr().out and (tmp_path / "out.html").exists()


def test_a_client_of_a_server_sends_settings_that_it_reads():
    sent = []
    completions = SimpleNamespace(create=lambda **request: sent.append(request))
    (code,) = blocks("docs/serving.md", "python")
    exec(code, {"client": SimpleNamespace(chat=SimpleNamespace(completions=completions))})
    pruner = resolve(sent[0]["extra_body"]["mm_processor_kwargs"]["ptp"]).pruner
    assert isinstance(pruner, ptp.PyramidPruner) and (pruner.keep_ratio, pruner.alpha) == (0.5, 0)


def test_the_example_of_own_questions_works(tmp_path, monkeypatch, capsys):
    pytest.importorskip("pyarrow")
    (lines,) = blocks("docs/choosing.md", "json")
    (command,) = commands("docs/choosing.md")
    for name, image in load_demo()[0].items():
        image.save(tmp_path / name)
    (tmp_path / "questions.jsonl").write_text(lines)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", command)
    threads = torch.get_num_threads()
    with pytest.raises(SystemExit) as stopped:
        main()
    torch.set_num_threads(threads)
    assert not stopped.value.code, capsys.readouterr().err
    table = json.loads((tmp_path / "mine.json").read_text())["rows"]
    assert len(table) == 10 and (table[0]["score"], table[0]["questions"], table[0]["answered"]) == (1.0, 3, 2)
    for beside in ("mine.rows.jsonl", "mine.bad.jsonl"):
        assert f"`{beside}`" in (ROOT / "docs/choosing.md").read_text()


def test_pages_show_the_committed_results():
    everywhere = ["README.md", "src/ptp/tiny/weights/README.md", *(ROOT / "docs").rglob("*.md")]
    pages = [str(path) for path in everywhere if "[[[cog" in (ROOT / path).read_text()]
    assert len(pages) > 6
    command = [sys.executable, "-m", "cogapp", "--check", "-I", "docs", *pages]
    check = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert check.returncode == 0, check.stdout + check.stderr + "Run make readme."


@pytest.mark.since_5_18  # before, transformers takes no other layers of ViP-LLaVA's encoder than the released ones
def test_the_model_families_of_the_documentation_prune(capsys):
    """ViP-LLaVA, and Qwen3-VL with pictures whole, by the adapters as written; `check_adapter` passes both."""
    vision = CLIPVisionConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64, patch_size=14)
    made = VipLlavaConfig(vision_config=vision, text_config=SMALL.language("llama"), vision_feature_layer=[-2])
    model = VipLlavaForConditionalGeneration._from_config(made)
    with pytest.raises(ptp.UnsupportedModelError, match=r"'vipllava' is not supported.*add_a_model"):
        ptp.attach(model, ptp.PyramidPruner())
    *first, last = blocks("docs/add_a_model.md", "python")
    names = {"ptp": ptp, "__name__": "documentation"}
    try:
        exec("\n".join(first), names)
        shown = [([photo(0, (100, 100))], "What is it?")]
        names["inputs"] = names["VIP"].encode(names["processor"], shown)
        exec(last, names)
        printed = capsys.readouterr().out
        assert "16 -> 4 visual tokens" in printed and printed.count("nothing left   4 checked, exact") == 2
    finally:
        FAMILIES.pop("vip-llava", None)
        for name in ("VipLlavaAdapter", "PackedAdapter"):
            if name in names:
                ADAPTERS.remove(names[name])
