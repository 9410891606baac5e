"""Videos, whose frames are regions, and pictures that come in crops."""

import pytest
import torch
from families import FAMILIES, QUESTION, Family, encode, model_of, picture, processor_of, pruner, tokenizer
from masking import assert_dropping_equals_masking

import ptp


def video_inputs(family: Family, frames: int = 3, rows: int = 4, columns: int = 6) -> dict:
    """A prompt with a picture, a video (sizes in patches) and a question, as the family's processor lays it out."""
    first = encode(family, ([picture(2)], QUESTION))
    patch = 14 if family.name == "qwen2.5-vl" else 16
    per_frame = "<|video_pad|>" * (rows * columns // 4)
    shown = (
        f"<|vision_start|>{per_frame * frames}<|vision_end|>"
        if family.name == "qwen2.5-vl"
        else "".join(f"<{n}.0 seconds><|vision_start|>{per_frame}<|vision_end|>" for n in range(frames))
    )
    ids = tokenizer()(f"<|im_start|>user\n{shown}\nAnd here?<|im_end|>\n", return_tensors="pt").input_ids
    pixels = torch.randn(frames * rows * columns, 3 * 2 * patch * patch, generator=torch.Generator().manual_seed(0))
    kinds = 2 * (ids == tokenizer().convert_tokens_to_ids("<|video_pad|>")).long()
    return {
        "input_ids": torch.cat([first["input_ids"], ids], dim=1),
        "attention_mask": torch.ones(1, first["input_ids"].shape[1] + ids.shape[1], dtype=torch.long),
        "mm_token_type_ids": torch.cat([first["mm_token_type_ids"], kinds.to(first["mm_token_type_ids"].dtype)], dim=1),
        "pixel_values": first["pixel_values"],
        "image_grid_thw": first["image_grid_thw"],
        "pixel_values_videos": pixels,
        "video_grid_thw": torch.tensor([[frames, rows, columns]]),
    }


@pytest.mark.parametrize("name", ["pyramid", "fastv", "hired", "random"])
@pytest.mark.parametrize("video_family", ["qwen2.5-vl", "qwen3-vl"])
def test_a_video_is_a_picture_whose_regions_are_frames(monkeypatch, video_family, name):
    family = FAMILIES[video_family]
    model, inputs, method = model_of(family), video_inputs(family), pruner(name)
    trace = assert_dropping_equals_masking(monkeypatch, model, inputs, method)
    still, video = trace.images
    assert video.sizes == (6, 6, 6) and video.layout.video and len(video.kept) == round(0.3 * 18) and not still.layout.video
    assert "18 -> 5 visual tokens, 3 frames" in str(trace)
    with method(model, tokenizer()) as trace:
        tokens = model.generate(**inputs, max_new_tokens=2, num_beams=2, do_sample=False)
        assert tokens.shape[1] == inputs["input_ids"].shape[1] + 2 and len(trace.images) == 4


def test_videos_are_refused_where_they_cannot_be_pruned():
    family = FAMILIES["llava-onevision"]
    model, inputs = model_of(family), encode(family, ([picture()], QUESTION))
    with pruner()(model, tokenizer()), pytest.raises(ptp.UnsupportedModelError, match="Videos cannot be pruned"):
        model(**inputs, pixel_values_videos=torch.randn(1, 2, 3, 60, 60))


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_crops_of_pan_and_scan_are_pruned_one_by_one(monkeypatch, layer):
    """Gemma 3: longer than its windows, so that what they count matters."""
    family, method = FAMILIES["gemma3"], pruner(prune_layer=layer)
    model, processor = model_of(family), processor_of(family)
    text = f"<|im_start|>user\n{family.image}\n{QUESTION}<|im_end|>\n"
    crops = {"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 56}
    inputs = dict(processor(text=[text], images=[[picture()]], **crops, return_tensors="pt"))
    trace = assert_dropping_equals_masking(monkeypatch, model, inputs, method)
    assert len(trace.images) == len(inputs["pixel_values"]) > 2 and all(len(image.kept) == 5 for image in trace.images)
    assert inputs["input_ids"].shape[1] > 3 * model.config.text_config.sliding_window
