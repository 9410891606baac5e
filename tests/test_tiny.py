"""The embedded model's pictures, its recipe, and the model itself where it counts."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from conftest import processor, tokenizer

import ptp
from ptp.bench.measure import answer, encode_prompt
from ptp.evaluation import draw_sample
from ptp.evaluation.samples import evidence_tokens
from ptp.tiny import WEIGHTS, lessons, train
from ptp.tiny.difficulty import Difficulty, read_difficulty, write_difficulty
from ptp.tiny.drawing import COLORS, GRIDS, LABELS, SHAPES, TAG_COLORS, TILE, draw_scene
from ptp.tiny.model import IMAGE_MEAN, IMAGE_STD, build_config, build_model
from ptp.tiny.tasks import TASKS, ask


@pytest.mark.parametrize("grid", GRIDS)
def test_things_are_unambiguous_and_inside_one_tile(grid):
    for seed in range(10):
        scene = draw_scene(np.random.default_rng(seed), grid)
        plates = [*scene.signs, *scene.tags]
        assert scene.signs and scene.table
        assert len({(sign.color, sign.shape) for sign in plates}) == len(plates) == len({sign.label for sign in plates})
        assert len({key for key, _ in scene.table.rows}) == len(scene.table.rows)
        boxes = [scene.table.box, *(sign.box for sign in plates)]
        for number, (left, top, right, bottom) in enumerate(boxes):
            assert left // TILE == (right - 1) // TILE < grid[0] and top // TILE == (bottom - 1) // TILE < grid[1]
            for a, b, c, d in boxes[:number]:
                assert right <= a or left >= c or bottom <= b or top >= d


@pytest.mark.parametrize("scale", [1, 3])
def test_the_same_seed_draws_the_same_picture(scale):
    pictures = [np.asarray(draw_scene(np.random.default_rng(3), (3, 2), scale=scale).image) for _ in range(2)]
    assert pictures[0].shape == (2 * TILE * scale, 3 * TILE * scale, 3) and (pictures[0] == pictures[1]).all()


def expected_answer(question: str, scene) -> str:
    """Answer a question by reading its words and looking at the scene: independent of how it was made."""
    words = question.rstrip("?.").split()
    by_label = {sign.label: sign for sign in scene.signs}
    looks = {(sign.color, sign.shape): sign.label for sign in (*scene.signs, *scene.tags)}
    named = tuple(word for word in words if word in (*COLORS, *TAG_COLORS, *SHAPES, "tag"))
    labels = [word for word in words if word in LABELS]
    if "color" in words:
        return by_label[labels[-1]].color
    if "shape" in words:
        return by_label[labels[-1]].shape
    if "How" in words or "Count" in words:
        return str(sum(sign.color == named[0] for sign in scene.signs))
    if "value" in words or "table" in words:
        return dict(scene.table.rows)[labels[-1]]
    if "there" in words or "picture" in words:
        return "yes" if named in looks else "no"
    if len(labels) == 2:
        a, b = (by_label[label].box for label in labels)
        truth = {"left": a[2] <= b[0], "right": a[0] >= b[2], "above": a[3] <= b[1], "below": a[1] >= b[3]}
        return "yes" if truth[next(word for word in words if word in truth)] else "no"
    return looks[named]


@pytest.mark.parametrize("task", TASKS)
def test_every_question_has_the_answer_that_its_words_ask_for(task):
    answers = Counter()
    for seed in range(150):
        rng = np.random.default_rng(seed)
        scene = draw_scene(rng, GRIDS[seed % len(GRIDS)])
        example = ask(rng, scene, task)
        if example is None:
            continue
        assert example.task == task and example.answer == expected_answer(example.question, scene)
        there = {scene.table.row_box(row) for row in range(len(scene.table.rows))}
        assert set(example.evidence) <= there | {sign.box for sign in (*scene.signs, *scene.tags)}
        assert example.evidence or example.answer in ("no", "0")
        answers[example.answer] += 1
    most = answers.most_common(1)[0][1] / answers.total()
    assert answers.total() > 120 and most < (0.62 if task in ("exists", "relation") else 0.4), "an answer can be guessed"


def test_an_unknown_task_is_refused_with_the_list():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="task must be one of read, color, shape, exists"):
        ask(rng, draw_scene(rng, (2, 2)), "sing")


@pytest.mark.parametrize("scale", [1, 3])
def test_training_sees_what_the_processor_makes_of_the_picture(scale):
    scene = draw_scene(np.random.default_rng(1), (3, 2), scale=scale)
    pixels = processor().image_processor(scene.image, return_tensors="pt")["pixel_values"]
    tiles = torch.from_numpy(lessons.cut(scene)).permute(0, 3, 1, 2).float() / 255
    expected = (tiles - torch.tensor(IMAGE_MEAN).view(3, 1, 1)) / torch.tensor(IMAGE_STD).view(3, 1, 1)
    torch.testing.assert_close(pixels, expected, atol=1e-4, rtol=0)


def test_packed_questions_cost_no_exactness():
    """Each question of a packed sequence gets the logits it gets alone in the chat template's own prompt."""
    model = build_model(build_config(tokenizer()), 0)
    phase = lessons.CURRICULUM[-2]
    batch = lessons.draw_batch(np.random.default_rng(0), tokenizer(), phase, 10)
    count, tiles = batch.pixels.shape[:2]
    features = model.model.get_image_features(batch.pixels.flatten(0, 1), return_dict=True).pooler_output
    with torch.no_grad():
        _, right = train.answer_loss(model, tokenizer(), batch, features.view(count, tiles, 16, -1))
        for q in range(lessons.QUESTIONS):
            block = batch.blocks[0, q, : batch.answers[0, q]].tolist()
            question = tokenizer().decode(block).split("<|im_end|>")[0]
            turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
            text = processor().apply_chat_template(turn, add_generation_prompt=True)
            text = text.replace("<IMG_CONTEXT>", "<img>" + "<IMG_CONTEXT>" * 16 * tiles + "</img>")
            ids = tokenizer()(text, return_tensors="pt").input_ids
            assert ids[0, -len(block) :].tolist() == block
            own = batch.pixels[0]
            token = model(input_ids=ids, pixel_values=own).logits[0, -1].argmax()
            assert bool(token == batch.blocks[0, q, batch.answers[0, q]]) == bool(right[0, q])


def test_the_recipe_resumes_where_it_stopped(tmp_path):
    """Stopped after a checkpoint or not: the same weights. Other settings are refused."""
    settings = {"steps": 4, "tiles_per_batch": 8, "peak": 1e-3, "seed": 1, "device": "cpu", "threads": 2}
    train.train(tmp_path / "whole", **settings)

    class Stop(Exception):
        pass

    calls = []
    original = train.forward

    def stop_after_two(*arguments):
        calls.append(1)
        if len(calls) > 2:
            raise Stop
        return original(*arguments)

    train.forward, every = stop_after_two, train.CHECKPOINT_EVERY
    train.CHECKPOINT_EVERY = 2
    try:
        with pytest.raises(Stop):
            train.train(tmp_path / "parts", **settings)
    finally:
        train.forward, train.CHECKPOINT_EVERY = original, every
    train.train(tmp_path / "parts", **settings)
    whole, parts = (torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("whole", "parts"))
    for name, weight in whole["model"].items():
        torch.testing.assert_close(weight, parts["model"][name], msg=name)
    with pytest.raises(Exception, match="was made with"):
        train.train(tmp_path / "parts", **{**settings, "seed": 2})


@pytest.fixture(scope="module")
def tiny():
    return ptp.load()


def test_the_embedded_model_answers_and_pruning_keeps_its_answers(tiny):
    """Fresh pictures, every task it has learned: nearly always right in full, hardly worse at half the tokens."""
    model, proc = tiny
    difficulty = read_difficulty(WEIGHTS)
    full, half, evidence = [], [], []
    for number in range(80 // len(difficulty.tasks) // 2):
        sample = draw_sample(99, "tune", number, difficulty)
        for example in sample.examples.values():
            inputs = encode_prompt(proc, [sample.scene.image], example.question, model)
            full.append(answer(model, proc, inputs, 4) == example.answer)
            with ptp.PyramidPruner(keep_ratio=0.5)(model) as trace:
                half.append(answer(model, proc, inputs, 4) == example.answer)
            if example.evidence:
                tokens = evidence_tokens(example.evidence, sample.scene.grid, trace.images[0].layout)
                evidence.append(len(tokens & set(trace.images[0].kept.tolist())) / len(tokens))
    assert np.mean(full) >= 0.8 and np.mean(half) >= np.mean(full) - 0.08
    assert np.mean(evidence) > 0.75


def test_the_embedded_model_is_small_and_complete():
    assert sum(len(file.read_bytes()) for file in WEIGHTS.iterdir()) < 16 * 2**20
    config = json.loads((WEIGHTS / "config.json").read_text())
    assert config["model_type"] == "internvl" and config["text_config"]["model_type"] == "qwen2"


def test_a_difficulty_is_read_as_it_was_written(tmp_path):
    assert read_difficulty(tmp_path) == Difficulty(), "weights without one are asked everything"
    easy = Difficulty(("read", "relation"), (1,), {"tags": 0, "sizes": [42]}, {"relation": {"relations": ["above"]}})
    write_difficulty(easy, tmp_path)
    assert read_difficulty(tmp_path) == easy
    assert set(read_difficulty(WEIGHTS).tasks) <= set(TASKS)
    sample = draw_sample(0, "tune", 0, easy)
    scene = sample.scene
    assert " above " in sample.examples["relation"].question
    assert not scene.tags and all(sign.box[2] - sign.box[0] == 42 for sign in scene.signs)
