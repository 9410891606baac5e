"""The recipe for VLMEvalKit, run as written over stand-ins of its shape: they hold a model of transformers."""

import json
import re
import sys
from pathlib import Path
from types import ModuleType

import families
import pytest
import torch
from PIL import Image

import ptp
from ptp.testing import FAMILIES
from ptp.tiny import WEIGHTS
from ptp.tiny.demo import load_demo

PAGE = Path(__file__).parents[1] / "docs/vlmevalkit.md"
QWEN = FAMILIES["qwen2.5-vl"]


class Qwen2VLChat:
    """What VLMEvalKit's class of this name is to a pruner: `.model`, `.processor`, and a generate of its own."""

    def __init__(self, max_new_tokens=4):
        self.model, self.processor = families.model_of(QWEN), families.processor_of(QWEN)
        self.max_new_tokens = max_new_tokens

    def generate_inner(self, message, dataset=None):
        shown = [Image.open(part["value"]) for part in message if part["type"] == "image"]
        (text,) = (part["value"] for part in message if part["type"] == "text")
        inputs = QWEN.encode(self.processor, [(shown, text)])
        ids = self.model.generate(**inputs, max_new_tokens=self.max_new_tokens, do_sample=False)
        return self.processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :])


@pytest.fixture
def recipe(monkeypatch, tmp_path):
    base, config = ModuleType("vlmeval.vlm.base"), ModuleType("vlmeval.config")
    base.BaseModel = type("BaseModel", (), {"__init__": lambda self: None})
    config.supported_VLM = {"Qwen2.5-VL-3B-Instruct": Qwen2VLChat}
    modules = {"vlmeval": ModuleType("vlmeval"), "vlmeval.vlm": ModuleType("vlmeval.vlm"), "vlmeval.vlm.base": base,
               "vlmeval.config": config}  # fmt: skip
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "tuned.json").write_text(
        json.dumps({"ptp_tuned": 1, "model": "m 0", "shape": {}, "proven": True, "max_change": 0.01,
                    "pruner": {"name": "cdpruner", "keep_ratio": 0.1}})
    )  # fmt: skip
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "run_pruned"}
    exec(code.replace("OpenGVLab/InternVL3-1B-hf", str(WEIGHTS)), names)
    return config.supported_VLM


def save(image, folder) -> list[dict]:
    image.save(folder / "p.png")
    return [{"type": "image", "value": str(folder / "p.png")}, {"type": "text", "value": "What is on the red circle?"}]


def test_a_chat_object_that_holds_the_model_is_pruned(recipe, tmp_path):
    message, pruner = save(families.picture(0), tmp_path), ptp.load_pruner("tuned.json")
    plain = Qwen2VLChat()
    unpruned = plain.generate_inner(message)
    with pruner(plain.model, plain.processor) as trace:
        expected = plain.generate_inner(message)
    assert trace.visual_tokens[1] < trace.visual_tokens[0] and expected != unpruned, "else this could not fail"
    assert recipe["Qwen2.5-VL-3B-Instruct"]().generate_inner(message) == unpruned
    chat = recipe["Qwen2.5-VL-3B-pruned"]()
    try:
        assert chat.generate_inner(message) == expected
        assert chat.pruning.trace.visual_tokens == trace.visual_tokens
    finally:
        chat.pruning.remove()  # the small model is shared by the tests


def test_the_class_for_internvl_answers_as_the_demo(recipe, tmp_path):
    pictures, questions = load_demo()
    chat = recipe["InternVL3-1B-pruned"](device="cpu", max_new_tokens=4)
    right = 0
    for one in questions[:4]:
        pictures[one.picture].save(tmp_path / "p.png")
        message = [{"type": "image", "value": str(tmp_path / "p.png")}, {"type": "text", "value": one.question}]
        pruned = chat.generate_inner(message)
        model, processor = ptp.load()
        parts = [{"type": "image", "image": pictures[one.picture]}, {"type": "text", "text": one.question}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": parts}], add_generation_prompt=True, tokenize=True, return_dict=True,
            processor_kwargs={"return_tensors": "pt"},
        )  # fmt: skip
        with torch.no_grad(), ptp.load_pruner("tuned.json")(model, processor):
            ids = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        assert pruned == processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        right += pruned == one.answer
    assert right >= 1
