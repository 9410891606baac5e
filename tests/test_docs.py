"""The code of the documentation runs as written, and its tables are those of docs/results."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ptp
from ptp.bench.measure import encode_prompt
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


def test_pages_show_the_committed_results():
    pages = ["README.md", "src/ptp/tiny/weights/README.md", "docs/results/ablation.md"]
    command = [sys.executable, "-m", "cogapp", "--check", "-I", "docs", *pages]
    check = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert check.returncode == 0, check.stdout + check.stderr + "Run make readme."
