"""Families other than InternVL, in engines of their own, against transformers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("vllm")
CLOSE = 1e-3


@pytest.mark.parametrize("name", ["qwen2.5-vl", "qwen3-vl"])
def test_qwen_vl(name):
    """Rows and columns: pictures of three shapes, two in one prompt, two questions, six settings; chunks of 48 tokens."""
    command = [sys.executable, "-m", "serving.qwen", name]
    made = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert made.returncode == 0, made.stderr[-4000:]
    told = json.loads(made.stdout.strip().splitlines()[-1])
    assert told["cases"] == 42
    assert max(told["first"]) < CLOSE and max(told["again"]) < CLOSE
    wrong = [value for value, pruned in zip(told["wrong"], told["pruned"], strict=True) if pruned]
    assert min(wrong) > CLOSE, "wrong positions were not noticed"
    assert max(value for value, pruned in zip(told["wrong"], told["pruned"], strict=True) if not pruned) < CLOSE
