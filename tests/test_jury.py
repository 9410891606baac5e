"""The jury: models that load like any other, taught on what their own processors make of a picture."""

import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

import ptp
from ptp.evaluation import Cell, Examiner, batches, draw_sample
from ptp.methods.parsing import parse_variants
from ptp.tiny import lessons
from ptp.tiny.difficulty import read_difficulty
from ptp.tiny.drawing import GRIDS, draw_scene
from ptp.tiny.model import IMAGE_MEAN, IMAGE_STD

sys.path.insert(0, str(Path(__file__).parents[1] / "jury"))
import alignment
import models
import train

JURY = Path(__file__).parents[1] / "jury"
TRAINED = ("idefics", "internvl", "llava")
SMALL = lessons.Phase(10, True, 2, (1, 3), grids=models.SMALL_GRIDS, scales=(1,), questions=3)


@cache
def pupil(name: str) -> train.Pupil:
    return train.Pupil(models.JURORS[name], 0)


@pytest.fixture(params=list(models.JURORS))
def name(request) -> str:
    return request.param


@pytest.fixture
def saved(name, tmp_path) -> Path:
    pupil(name).juror.save(pupil(name).model, pupil(name).tokenizer, tmp_path / name)
    return tmp_path / name


def test_the_jury_differs_in_what_matters():
    deep = [name for name in models.JURORS if pupil(name).model.config.get_text_config().num_hidden_layers == 12]
    kinds = {name: pupil(name).model.config.model_type for name in models.JURORS}
    assert len(deep) >= 2 and len(set(kinds.values())) == len(kinds) >= 4
    for name in models.JURORS:
        assert 3e6 < sum(weight.numel() for weight in pupil(name).model.parameters()) < 6e6


@pytest.mark.parametrize("grid", [*models.SMALL_GRIDS, *GRIDS])
def test_its_processor_shows_a_juror_the_picture_as_it_was_drawn(name, grid):
    """Pixel by pixel: tiles of 112 px, or the whole picture in patches."""
    scene = draw_scene(np.random.default_rng(1), grid)
    pixels = pupil(name).processor.image_processor(scene.image, return_tensors="pt")["pixel_values"]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD))
    tiles = (torch.from_numpy(lessons.cut(scene)[:-1]).permute(0, 3, 1, 2).float() / 255 - mean) / std
    if name == "qwen":  # a block of 2 x 2 patches after the other, in raster order; each patch twice, for two frames
        columns, rows = grid
        blocks = pixels.view(4 * rows, 4 * columns, 2, 2, 3, 2, 14, 14)
        assert torch.equal(blocks[..., 0, :, :], blocks[..., 1, :, :])
        whole = blocks[..., 0, :, :].permute(4, 0, 2, 5, 1, 3, 6).reshape(3, 112 * rows, 112 * columns)
        shown = whole.view(3, rows, 112, columns, 112).permute(1, 3, 0, 2, 4).reshape(-1, 3, 112, 112)
    else:
        shown = pixels.flatten(0, -4)
        shown = shown[1:] if name == "llava" else shown[: len(tiles)]
    torch.testing.assert_close(shown, tiles, atol=1e-4, rtol=0)


def test_a_packed_question_gets_the_logits_it_gets_alone(name, saved):
    """In the prompt of the chat template, through the checkpoint as it is loaded for an evaluation."""
    own = pupil(name)
    model, processor = ptp.load(saved)
    model.load_state_dict(own.model.state_dict())  # not rounded to half precision
    lesson = lessons.draw_lesson(np.random.default_rng(2), own.tokenizer, SMALL, 6)
    with torch.no_grad():
        packed = own.model.lm_head(own.states(lesson)).view(len(lesson.scenes), SMALL.questions, lessons.BLOCK, -1)
        for b, q in ((0, 0), (1, SMALL.questions - 1)):
            end = int(lesson.answers[b, q])
            question = own.tokenizer.decode(lesson.blocks[b, q, :end]).split("<|im_end|>")[0]
            content = [{"type": "image", "image": lesson.scenes[b].image}, {"type": "text", "text": question}]
            inputs = processor.apply_chat_template(
                [[{"role": "user", "content": content}]], add_generation_prompt=True, tokenize=True, return_dict=True,
                processor_kwargs={"return_tensors": "pt", "padding": True},
            )  # fmt: skip
            assert inputs["input_ids"][0, -end:].tolist() == lesson.blocks[b, q, :end].tolist()
            torch.testing.assert_close(model(**inputs).logits[0, -end:], packed[b, q, :end], atol=2e-4, rtol=0)


def test_the_warm_up_looks_where_it_is_told_of(name):
    """A visual token's pixels are painted over: its cell changes more than any other, and the [CLS] of its tile."""
    own = pupil(name)
    scene = draw_scene(np.random.default_rng(4), (3, 2))
    for tile, cell in ((0, 0), (1, 7), (3, 12), (5, 10)):
        cells, cls = [], []
        for painted in (False, True):
            image = scene.image.copy()
            if painted:
                left, top = 112 * (tile % 3) + 28 * (cell % 4), 112 * (tile // 3) + 28 * (cell // 4)
                image.paste((200, 30, 30), (left, top, left + 28, top + 28))
            changed = lessons.Scene(image, scene.grid, scene.signs, scene.tags, scene.table)
            nothing = torch.zeros(1, 1, dtype=torch.long)
            with torch.no_grad():
                states = own.encode(lessons.Lesson([changed], nothing, nothing, [])).last_hidden_state
            one, other = own.juror.cells(states, 1, scene.grid)
            cells.append(one[0, :6])
            cls.append(other)
        assert (cells[1] - cells[0]).norm(dim=-1).argmax() == 16 * tile + cell
        assert (cls[0] is None) == (name in ("qwen", "idefics"))
        if cls[0] is not None:
            assert (cls[1] - cls[0])[0, :6].norm(dim=-1).argmax() == tile


def test_a_training_goes_on_where_it_stopped(tmp_path, monkeypatch):
    """Stopped after a checkpoint: the same weights as without a stop, through a change of legs."""
    monkeypatch.setattr(train, "SIGHT", (train.Leg(train.replace(SMALL, steps=2, answers=False)),))
    monkeypatch.setattr(train, "ANSWERS", (train.Leg(train.replace(SMALL, steps=2)),))
    options = {"tiles_per_batch": 6, "peak": 1e-3, "seed": 1, "threads": 2}
    train.train("internvl", tmp_path / "whole", seconds=1e9, **options)
    for _ in range(4):  # at least one step each
        train.train("internvl", tmp_path / "parts", seconds=1e-9, **options)
    whole, parts = (torch.load(tmp_path / run / "checkpoint.pt", weights_only=True) for run in ("whole", "parts"))
    assert whole["state"]["step"] == parts["state"]["step"] == 4 and whole["rng"] == parts["rng"]
    for key, weight in whole["model"].items():
        torch.testing.assert_close(weight, parts["model"][key], msg=key)


def test_a_juror_is_examined_like_any_other(name, saved):
    model, processor = ptp.load(saved)
    contenders = parse_variants("random,downsample", ("downsample",))
    examiner = Examiner(model, processor, batches(draw_sample(0, "tune", number) for number in range(2)), contenders)
    for contender in contenders:
        cell = Cell("read", contender.name, 0.5)
        examiner.fill(cell, contender)
        assert len(cell.right) == 2 and 0 < cell.kept <= 0.5 * cell.total + 1


@pytest.mark.parametrize("trained", TRAINED)
def test_a_trained_juror_has_learned_what_it_says(trained):
    """Of twelve pictures it has not seen, each of its tasks; a colour is guessed once in eight, yes or no every other time."""
    model, processor = ptp.load(JURY / trained)
    learned = read_difficulty(JURY / trained)
    assert model.config.model_type == pupil(trained).model.config.model_type
    examiner = Examiner(model, processor, batches(draw_sample(5, "report", number, learned) for number in range(12)), [])
    for task in learned.tasks:
        cell = Cell(task, "full", 1.0)
        examiner.fill(cell, None)
        assert sum(cell.right) >= (10 if task in ("color", "shape", *train.OF_TWO) else 6), task


def test_alignment_counts_the_tokens_whose_nearest_word_is_right(monkeypatch):
    """Of states that are the embeddings of the words themselves, all; of another word's, none."""
    own = pupil("internvl")
    sample = draw_sample(0, "tune", 0)
    states, layout = alignment.visual_states(own.model.eval(), own.processor, sample)
    assert states.shape == (16 * (sample.scene.grid[0] * sample.scene.grid[1] + 1), 160)
    table = own.model.get_input_embeddings().weight.detach()
    for told, expected in ((None, 1.0), ("yes", 0.0)):
        spoken = states.clone()
        for sign in (*sample.scene.signs, *sample.scene.tags):
            for token in alignment.evidence_tokens([sign.box], sample.scene.grid, layout):
                spoken[token] = table[lessons.encode(own.tokenizer, told or sign.color)[0]]
        monkeypatch.setattr(alignment, "visual_states", lambda *_, spoken=spoken: (spoken, layout))
        found = alignment.alignment(own.model, own.processor, [sample])
        assert found["any"] == expected or (told is None and found["any"] > 0.9)  # a token may show two signs
        assert found["label"] == 0.0
