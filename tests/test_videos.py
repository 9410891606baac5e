"""Videos, whose frames are regions, and pictures that come in crops."""

import pytest
import torch
from families import FAMILIES, QUESTION, Family, encode, model_of, picture, processor_of, pruner, tokenizer
from masking import assert_dropping_equals_masking

import ptp


def video_inputs(family: Family, frames: int = 3, rows: int = 4, columns: int = 6) -> dict:
    """A prompt with a picture, a video (sizes in patches) and a question, as the family's processor lays it out."""
    first = encode(family, ([picture(2)], QUESTION))
    patch = 14 if family.name in ("qwen2-vl", "qwen2.5-vl") else 16
    per_frame = "<|video_pad|>" * (rows * columns // 4)
    shown = (
        f"<|vision_start|>{per_frame * frames}<|vision_end|>"
        if family.name in ("qwen2-vl", "qwen2.5-vl")
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


def numbered_frames(family: Family, frames: int = 3) -> dict:
    """The same as InternVL has it: a frame is a picture of one tile, and its processor numbers them in the prompt."""
    processor = processor_of(family)
    pixels = torch.randn(frames, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    shown = processor.replace_video_token({"pixel_values_videos": [pixels]}, 0)
    ids = tokenizer()(f"<|im_start|>user\n{shown}\nAnd here?<|im_end|>\n", return_tensors="pt").input_ids
    first = encode(family, ([picture(2)], QUESTION))
    return {
        "input_ids": torch.cat([first["input_ids"], ids], dim=1),
        "attention_mask": torch.ones(1, first["input_ids"].shape[1] + ids.shape[1], dtype=torch.long),
        "pixel_values": torch.cat([first["pixel_values"], pixels]),
    }


def stamped_frames(family: Family, frames: int = 3, rows: int = 4, columns: int = 6) -> dict:
    """The same as GLM has it, without a picture: frames are spelled as pictures, each with its second behind it."""
    frame = f"<|begin_of_image|>{'<|image|>' * (rows * columns // 4)}<|end_of_image|>"
    stamp = "{}.0 seconds" if family.name == "glm-4.6v" else "{}"
    shown = "".join(frame + stamp.format(n) for n in range(frames))
    shown = f"<|im_start|>user\n<|begin_of_video|>{shown}<|end_of_video|>\n{QUESTION}<|im_end|>\n"
    ids = tokenizer()(shown, return_tensors="pt").input_ids
    pixels = torch.randn(frames * rows * columns, 3 * 2 * 14 * 14, generator=torch.Generator().manual_seed(0))
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": torch.tensor(processor_of(family).create_mm_token_type_ids(ids.tolist())),
        "pixel_values_videos": pixels,
        "video_grid_thw": torch.tensor([[frames, rows, columns]]),
    }


def timed_frames(family: Family, frames: int = 3, rows: int = 4, columns: int = 6, most: int = 60) -> dict:
    """The same as Gemma 4 has it: each frame behind its time, its patches padded, and told where they are."""
    shown = " ".join(f"00:0{n} <|image>{'<|video|>' * (rows * columns // 4)}<image|>" for n in range(frames))
    ids = tokenizer()(f"<|im_start|>user\n{shown}\nAnd here?<|im_end|>\n", return_tensors="pt").input_ids
    first = encode(family, ([picture(2)], QUESTION))
    kinds = 2 * (ids == tokenizer().convert_tokens_to_ids("<|video|>")).long()
    pixels = torch.rand(frames, most, 3 * 16 * 16, generator=torch.Generator().manual_seed(0))
    places = torch.full((frames, most, 2), -1)
    places[:, : rows * columns] = torch.tensor([(x, y) for y in range(rows) for x in range(columns)])
    return first | {
        "input_ids": torch.cat([first["input_ids"], ids], dim=1),
        "attention_mask": torch.ones(1, first["input_ids"].shape[1] + ids.shape[1], dtype=torch.long),
        "mm_token_type_ids": torch.cat([first["mm_token_type_ids"], kinds], dim=1),
        "pixel_values_videos": pixels,
        "video_position_ids": places,
        "num_frames_per_video": torch.tensor([frames]),
    }


VIDEOS = ["internvl", "qwen2-vl", "qwen2.5-vl", "qwen3-vl", "qwen3.5", "glm-4.1v", "glm-4.5v", "glm-4.6v"]
HEAR = [name for name in ("gemma4",) if name in FAMILIES]  # not on the lowest release: test_releases says which are missing


@pytest.mark.parametrize("name", ["pyramid", "fastv", "hired", "random"])
@pytest.mark.parametrize("video_family", [*VIDEOS, *HEAR])
def test_a_video_is_a_picture_whose_regions_are_frames(monkeypatch, video_family, name):
    family = FAMILIES[video_family]
    glm, size = video_family.startswith("glm"), 16 if video_family == "internvl" else 6
    made = {"internvl": numbered_frames, "glm": stamped_frames, "gemma4": timed_frames}
    inputs = made.get(video_family.partition("-4")[0], video_inputs)(family)
    model, method = model_of(family), pruner(name)
    trace = assert_dropping_equals_masking(monkeypatch, model, inputs, method)
    *stills, video = trace.images
    assert video.sizes == (size,) * 3 and video.layout.video and [still.layout.video for still in stills] == [False] * (not glm)
    kept = round(0.3 * 3 * size)
    assert len(video.kept) == kept and f"{3 * size} -> {kept} visual tokens, 3 frames" in str(trace)
    with method(model, tokenizer()) as trace:
        beams = 1 if glm else 2  # transformers itself fails at beams over GLM's videos
        tokens = model.generate(**inputs, max_new_tokens=2, num_beams=beams, do_sample=False)
        assert tokens.shape[1] == inputs["input_ids"].shape[1] + 2 and len(trace.images) == (1 if glm else 4)


@pytest.mark.parametrize(
    ("text", "videos"),
    [
        ("Frame1: {}\nFrame2: {}\nFrame3: {}\n", [3]),
        ("Frame1: {}\nFrame2: {}\nFrame1: {}\nFrame2: {}\n", [2, 2]),
        ("Frame1: {}\nFrame3: {}\n", [1, 1]),
        ("Image-1: {}\nImage-2: {}\n", [1, 1]),
        ("{}\n{}\n", [1, 1]),
    ],
)
def test_frames_are_what_the_prompt_numbers(text, videos):
    """InternVL; without a tokenizer the text cannot be read, and frames are pictures like others."""
    family = FAMILIES["internvl"]
    model, frame = model_of(family), f"<img>{'<IMG_CONTEXT>' * 16}</img>"
    ids = tokenizer()(text.format(*[frame] * sum(videos)), return_tensors="pt").input_ids
    pixels = torch.randn(sum(videos), 3, 112, 112, generator=torch.Generator().manual_seed(0))
    for known, expected in ((tokenizer(), videos), (None, [1] * sum(videos))):
        with torch.no_grad(), pruner(alpha=0)(model, known) as trace:
            model(input_ids=ids, pixel_values=pixels)
        assert [len(image.sizes) for image in trace.images] == expected
        assert [image.layout.video for image in trace.images] == [frames > 1 for frames in expected]


@pytest.mark.parametrize("name", HEAR)
def test_sound_beside_pictures_is_refused(name):
    """Gemma 4 hears, too: its tokens are neither the user's words nor a picture's."""
    family = FAMILIES[name]
    model, inputs = model_of(family), encode(family, ([picture()], QUESTION))
    sound = {"input_features": torch.randn(1, 8, 128), "input_features_mask": torch.ones(1, 8)}
    with pruner()(model, tokenizer()), torch.no_grad():
        with pytest.raises(ptp.UnsupportedModelError, match="beside sound in Gemma 4"):
            model(**inputs, **sound)
        with pytest.raises(ValueError, match="initialized without an audio_config"):  # alone it is the model's own matter
            model(input_ids=torch.full((1, 4), 40), **sound)


def test_videos_are_refused_where_they_cannot_be_pruned():
    family = FAMILIES["llava-onevision"]
    model, inputs = model_of(family), encode(family, ([picture()], QUESTION))
    with pruner()(model, tokenizer()), pytest.raises(ptp.UnsupportedModelError, match="Videos cannot be pruned"):
        model(**inputs, pixel_values_videos=torch.randn(1, 2, 3, 60, 60))


@pytest.mark.parametrize("name", ["glm-4.1v", "glm-4.5v", "glm-4.6v"])
def test_pictures_and_videos_that_share_a_token_are_refused_in_one_call(name):
    """Transformers takes either; a picture behind a video, in a later turn, is pruned."""
    family = FAMILIES[name]
    model, video, still = model_of(family), stamped_frames(family), encode(family, ([picture(2)], QUESTION))
    each = ("input_ids", "attention_mask", "mm_token_type_ids")
    both = {**video, **still, **{name: torch.cat([video[name], still[name]], dim=1) for name in each}}
    with torch.no_grad(), pruner()(model, tokenizer()) as trace:
        with pytest.raises(ptp.UnsupportedModelError, match="gives pictures and videos the same token"):
            model(**both)
        with pytest.raises(ptp.UnsupportedModelError, match="gives pictures and videos the same token"):
            model.generate(**both, max_new_tokens=2)
        cache = model(**video).past_key_values
        assert [image.layout.video for image in trace.images] == [True]
        positions, _ = model.model.get_rope_index(
            **{name: both[name] for name in each},
            image_grid_thw=still["image_grid_thw"],
            video_grid_thw=video["video_grid_thw"],
        )
        later = {"attention_mask": both["attention_mask"], "position_ids": positions[..., video["input_ids"].shape[1] :]}
        model(**{**still, **later}, past_key_values=cache)
        assert [image.layout.video for image in trace.images] == [False]


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
