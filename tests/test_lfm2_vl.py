"""LFM2-VL: tiles whose grid only their markers tell, and convolutions between the layers that attend."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from families import FAMILIES, QUESTION, encode, model_of, photo, processor_of, prune, pruner, token_id

import ptp
from ptp.adapters import adapter_for
from ptp.testing import check_adapter, small_processor
from torchvision_beside import IMPORTABLE, TORCHVISION

LFM2 = FAMILIES["lfm2-vl"]
SIZES = ((300, 200), (120, 260), (30, 30), (40, 170), (64, 400), (256, 256))

SCRIPT = (
    IMPORTABLE
    + """
from transformers.models.lfm2_vl.image_processing_lfm2_vl import Lfm2VlImageProcessor
from ptp.testing import photo
processor = Lfm2VlImageProcessor(tile_size=64, encoder_patch_size=8, min_image_tokens=4, max_image_tokens=16)
sizes = [tuple(map(int, size.split("x"))) for size in sys.argv[3:]]
made = [dict(processor([[photo(0, size)]], return_row_col_info=True, return_tensors="pt")) for size in sizes]
torch.save(made, sys.argv[2])
"""
)


def in_order(scale):
    """As published: two convolutions before a layer that attends."""
    made = LFM2.config(scale)
    made.text_config.layer_types = ["conv", "conv", "full_attention", "conv"]
    return made


ORDERED = replace(LFM2, name="lfm2-vl in order", config=in_order)


def test_tiles_are_those_of_transformers(tmp_path):
    """Its own image processor needs torchvision; the one that the small model has makes the same of pictures."""
    if not TORCHVISION.exists():
        pytest.skip(f"no torchvision in {TORCHVISION}; `make test` puts it there")
    told = [f"{width}x{height}" for width, height in SIZES]
    command = [sys.executable, "-c", SCRIPT, str(TORCHVISION), str(tmp_path / "made.pt"), *told]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    grids = set()
    for size, theirs in zip(SIZES, torch.load(tmp_path / "made.pt", weights_only=True), strict=True):
        mine = processor_of(LFM2).image_processor([[photo(0, size)]])
        for name in ("spatial_shapes", "pixel_attention_mask"):
            assert torch.equal(mine[name], theirs[name]), (size, name)
        torch.testing.assert_close(mine["pixel_values"], theirs["pixel_values"], atol=0.01, rtol=0)
        grid = mine["image_cols"][0], mine["image_rows"][0]
        assert grid == (int(theirs["image_cols"][0]), int(theirs["image_rows"][0]))
        grids.add(grid)
    assert len(grids) > 3 and (1, 1) in grids


def test_the_oracles_hold_in_the_order_of_released_checkpoints():
    report = check_adapter(model_of(ORDERED), small_processor(ORDERED))
    assert adapter_for(model_of(ORDERED)).text.attending == (2,)
    assert {check.oracle for check in report} >= {"masking", "batch", "decode"}


def test_what_no_layer_says_is_refused():
    inputs = encode(ORDERED, ([photo(0, (300, 200))], QUESTION))
    with pytest.raises(ptp.UnsupportedModelError, match="the first layer that attends is 2"):
        prune(model_of(ORDERED), inputs, pruner("fastv"))


def test_a_grid_is_read_off_the_markers():
    model, inputs = model_of(LFM2), encode(LFM2, ([photo(0, (300, 200)), photo(1, (30, 30))], QUESTION))
    _, trace = prune(model, inputs, pruner())
    assert [image.grid for image in trace.images] == [(3, 2), None]
    assert [image.layout.tiles[-1].sides for image in trace.images] == [(4, 3), (2, 2)], "thumbnails keep the picture's shape"
    with torch.no_grad(), pruner(alpha=0)(model), pytest.raises(ValueError, match=r"read off their markers.*Pass the model's"):
        model(**inputs)
    row, column = (token_id(f"<|img_row_1_col_{n}|>") for n in (1, 2))
    wrong = inputs["input_ids"].clone()
    wrong[inputs["input_ids"] == row], wrong[inputs["input_ids"] == column] = column, row
    with pytest.raises(ValueError, match="read off their markers"):
        prune(model, inputs | {"input_ids": wrong}, pruner())


def test_a_grid_without_a_thumbnail():
    """use_thumbnail=False: the picture ends with its last tile."""
    inputs = encode(LFM2, ([photo(0, (300, 200))], QUESTION))
    ids, units = inputs["input_ids"][0], len(inputs["spatial_shapes"]) - 1
    thumbnail, end = (int((ids == token_id(name)).nonzero()) for name in ("<|img_thumbnail|>", "<|image_end|>"))
    left = torch.cat([ids[:thumbnail], ids[end:]])[None]
    cut = {name: inputs[name][:units] for name in ("pixel_values", "pixel_attention_mask", "spatial_shapes")}
    _, trace = prune(model_of(LFM2), {"input_ids": left, "attention_mask": torch.ones_like(left), **cut}, pruner())
    (image,) = trace.images
    assert image.grid == (3, 2) and not image.layout.thumbnail and len(image.sizes) == units
