"""The code of the documentation runs as written, and its tables are those of docs/results."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPVisionConfig, VipLlavaConfig, VipLlavaForConditionalGeneration

import ptp
from ptp.adapters import ADAPTERS
from ptp.bench.measure import encode_prompt
from ptp.cli import main
from ptp.testing import FAMILIES, SMALL, photo
from ptp.tiny.demo import load_demo
from ptp.tiny.drawing import draw_scene

ROOT = Path(__file__).parents[1]


def code_of(name: str) -> str:
    return "\n".join(re.findall(r"^```python\n(.*?)^```", (ROOT / name).read_text(), re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize(("name", "kept"), [("README.md", 104), ("docs/add_a_method.md", 52)])
def test_the_code_runs_as_written(name, kept, capsys):
    model, processor = ptp.load()
    picture = draw_scene(np.random.default_rng(0), (4, 3)).image
    names = {"inputs": encode_prompt(processor, [picture], "Read the red circle.", model), "__name__": "documentation"}
    exec(code_of(name), names)
    assert names["trace"].visual_tokens == (208, kept) and names["output"].shape[1] > names["inputs"]["input_ids"].shape[1]
    assert f"208 -> {kept} visual tokens" in capsys.readouterr().out


def test_the_example_of_own_questions_works(tmp_path, monkeypatch, capsys):
    pytest.importorskip("pyarrow")
    text = (ROOT / "README.md").read_text()
    (lines,) = re.findall(r"^```json\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    (command,) = re.findall(r"^\.venv/bin/(ptp eval --data .*)$", text, re.MULTILINE)
    for name, image in load_demo()[0].items():
        image.save(tmp_path / name)
    (tmp_path / "questions.jsonl").write_text(lines)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", command.split())
    threads = torch.get_num_threads()
    with pytest.raises(SystemExit) as stopped:
        main()
    torch.set_num_threads(threads)
    assert not stopped.value.code, capsys.readouterr().err
    table = json.loads((tmp_path / "mine.json").read_text())["rows"]
    assert len(table) == 10 and (table[0]["score"], table[0]["questions"], table[0]["answered"]) == (1.0, 3, 2)
    for beside in ("mine.rows.jsonl", "mine.bad.jsonl"):
        assert f"`{beside}`" in text


def test_pages_show_the_committed_results():
    results = [f"docs/results/{name}.md" for name in ("ablation", "models", "rivals", "first_token")]
    pages = ["README.md", "src/ptp/tiny/weights/README.md", *results]
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
    *blocks, last = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/add_a_model.md").read_text(), re.MULTILINE | re.DOTALL)
    names = {"ptp": ptp, "__name__": "documentation"}
    try:
        exec("\n".join(blocks), names)
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
