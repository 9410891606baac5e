"""Families other than InternVL, in engines of their own, against transformers."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ptp.adapters import adapter_for
from ptp.testing import FAMILIES
from ptp.testing.family import Scale

pytestmark = pytest.mark.usefixtures("vllm")
CLOSE = 1e-3


@pytest.mark.parametrize("name, cases", [("qwen2.5-vl", 42), ("qwen3-vl", 42), ("llava-onevision", 62)])
def test_family(name, cases):
    """Pictures of three shapes, two in one prompt, two questions, settings of each request's own; chunks of 48 tokens. LLaVA:
    every method that is served."""
    command = [sys.executable, "-m", "serving.family", name]
    made = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert made.returncode == 0, made.stderr[-4000:]
    told = json.loads(made.stdout.strip().splitlines()[-1])
    assert told["cases"] == len(told["first"]) == cases and told["pruned"] == len(told["remembered"])
    assert max(told["first"]) < CLOSE and max(told["again"]) < CLOSE and max(told["remembered"]) < CLOSE
    assert all(cached > 0 for length, cached in told["again: prompts"] if length > 33), "no prefix was reused"
    assert told["first: runs"] > 0 and told["remembered: runs"] == 0, "a picture that is remembered was encoded"
    for wrong in (told["wrong in pictures"], told["wrong in text"]):
        assert min(wrong[: told["pruned"]]) > CLOSE, "wrong positions were not noticed"
        assert max(wrong[told["pruned"] :]) < CLOSE  # nothing was pruned in these
    assert told["refused"] == []


@pytest.mark.parametrize(
    "more, message",
    [
        ({"vision_aspect_ratio": "anyres_max_3"}, "vision_aspect_ratio must be 'anyres_max_9'"),
        ({"vision_feature_select_strategy": "default"}, "all its patches are features"),
        ({}, None),
    ],
)
def test_llavas_that_vllm_lays_out_in_another_way_are_refused(vllm, more, message):
    from ptp.serving.vllm.families.llava_onevision import Processor
    from ptp.serving.vllm.settings import resolve

    vision = SimpleNamespace(model_type="siglip_vision_model")
    published = {"vision_aspect_ratio": "anyres_max_9", "vision_feature_select_strategy": "full", "vision_config": vision}
    processor = SimpleNamespace(info=SimpleNamespace(get_hf_config=lambda: SimpleNamespace(**published | more)))
    with pytest.raises(ValueError, match=message) if message else contextlib.nullcontext():
        Processor.check(processor, resolve({"keep_ratio": 0.5}))


SIZES = (
    (1, 1), (1, 200), (300, 2), (640, 6), (9, 1700), (30, 30), (100, 180), (333, 334), (500, 120), (672, 336), (800, 600),
    (1152, 1151), (3000, 4000), (9000, 60), (8000, 8000), (300, 1), (5, 600),
)  # fmt: skip


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_llava_is_laid_out_as_in_transformers(vllm, size):
    """Published tiles: the engine counts, and we place, what the model of transformers packs."""
    from vllm.model_executor.models.llava_onevision import LlavaOnevisionProcessingInfo

    from ptp.serving.vllm.families.llava_onevision import Encoder

    (width, height), text = size, dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1)
    scale = Scale(hidden=16, layers=1, heads=1, mlp=16, real=True, text=text | dict(head_dim=16, intermediate_size=16))
    model = FAMILIES["llava-onevision"].build(scale)
    (own,) = Encoder(model.config).pictures([(height, width)])
    wanted = adapter_for(model).packed(((height, width), True, "anyres_max_9"))
    counts = LlavaOnevisionProcessingInfo(SimpleNamespace(get_hf_config=lambda _: model.config))
    assert own.tokens == wanted.tokens == counts.get_num_image_tokens(image_width=width, image_height=height)
    assert own.layout == wanted.layout and torch.equal(own.order, wanted.order)
