"""The code of the documentation runs as written, and its tables are those of docs/results."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from families import SMALL, token_id, tokenizer
from masking import blinded
from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.processing_llava import LlavaProcessor

import ptp
from ptp.adapters import ADAPTERS
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
    pages = ["README.md", "src/ptp/tiny/weights/README.md", "docs/results/ablation.md", "docs/results/models.md"]
    command = [sys.executable, "-m", "cogapp", "--check", "-I", "docs", *pages]
    check = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert check.returncode == 0, check.stdout + check.stderr + "Run make readme."


def test_the_model_family_of_the_documentation_prunes(capsys):
    """LLaVA 1.5 by the adapter as written: what it drops is what masking hides."""
    vision = CLIPVisionConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64, image_size=56, patch_size=14
    )
    config = LlavaConfig(
        vision_config=vision, text_config=SMALL.language("llama"), image_token_id=token_id("<image>"), tie_word_embeddings=False
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration._from_config(config).eval()
    model.generation_config.eos_token_id = None
    tiles = CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    processor = LlavaProcessor(
        tiles, tokenizer(), patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )
    text = "<|im_start|>user\n<image>\nWhat is it?<|im_end|>\n<|im_start|>assistant\n"
    inputs = processor(text=[text], images=[draw_scene(np.random.default_rng(0), (1, 1)).image], return_tensors="pt")
    with pytest.raises(ptp.UnsupportedModelError, match=r"'llava' is not supported.*add_a_model"):
        ptp.attach(model, ptp.PyramidPruner(), processor)
    names = {"inputs": inputs, "model": model, "processor": processor, "ptp": ptp, "__name__": "documentation"}
    try:
        exec(code_of("docs/add_a_model.md"), names)
        assert "16 -> 4 visual tokens" in capsys.readouterr().out
        with torch.no_grad(), ptp.PyramidPruner(keep_ratio=0.25)(model, processor) as trace:
            pruned = model(**inputs).logits
        dropped = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
        dropped[0, trace.images[0].positions] = True
        dropped[0, trace.images[0].positions[trace.images[0].kept]] = False
        with torch.no_grad(), blinded(model, inputs["attention_mask"].bool(), ({0: dropped}, None)):
            torch.testing.assert_close(pruned, model(**inputs).logits[~dropped][None], atol=1e-4, rtol=0)
    finally:
        ADAPTERS.remove(names["LlavaAdapter"])
