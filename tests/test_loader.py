"""Loading with torchvision and without it gives the same inputs."""

import subprocess
import sys

import pytest
import torch
from conftest import picture, prompt
from transformers.models.internvl.processing_internvl import InternVLProcessor
from transformers.utils import is_torchvision_available

import ptp
from ptp.loader import pictures_only
from torchvision_beside import IMPORTABLE, TORCHVISION

SCRIPT = (
    IMPORTABLE
    + """
from PIL import Image
import ptp
_, processor = ptp.load()
image = Image.open(sys.argv[2])
question = {"type": "text", "text": "What is on the red circle?"}
turn = [{"role": "user", "content": [{"type": "image", "image": image}, question]}]
inputs = processor.apply_chat_template(
    turn, add_generation_prompt=True, tokenize=True, return_dict=True, processor_kwargs={"return_tensors": "pt"})
torch.save({"name": type(processor).__name__, **inputs}, sys.argv[3])
"""
)


def test_without_torchvision_the_processor_has_no_video_half():
    if is_torchvision_available():
        pytest.skip("torchvision is installed in this environment")
    _, processor = ptp.load()
    assert isinstance(processor, pictures_only(InternVLProcessor)) and processor.video_processor is None


def test_with_torchvision_the_inputs_are_the_same(tmp_path):
    if not TORCHVISION.exists():
        pytest.skip(f"no torchvision in {TORCHVISION}; `make test` puts it there")
    image = picture(1, (3, 2))
    image.save(tmp_path / "picture.png")
    command = [sys.executable, "-c", SCRIPT, str(TORCHVISION), str(tmp_path / "picture.png"), str(tmp_path / "inputs.pt")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    theirs = torch.load(tmp_path / "inputs.pt", weights_only=True)
    assert theirs.pop("name") == "InternVLProcessor"
    _, processor = ptp.load()
    mine = processor.apply_chat_template(
        prompt(image), add_generation_prompt=True, tokenize=True, return_dict=True, processor_kwargs={"return_tensors": "pt"}
    )
    assert torch.equal(mine["input_ids"], theirs["input_ids"])
    # The tiles are cut without resizing; the thumbnail is resized by other code: a shade apart at most.
    torch.testing.assert_close(mine["pixel_values"], theirs["pixel_values"], atol=0.03, rtol=0)


def test_dtype_and_attention_can_be_chosen():
    model, _ = ptp.load(dtype="bfloat16", attn_implementation="eager")
    assert model.dtype == torch.bfloat16 and model.config.text_config._attn_implementation == "eager"


@pytest.mark.parametrize(("settings", "message"), [({"device": "tpu"}, "device must be"), ({"dtype": "int3"}, "dtype must be")])
def test_unknown_device_and_dtype(settings, message):
    with pytest.raises(ValueError, match=message):
        ptp.load(**settings)
