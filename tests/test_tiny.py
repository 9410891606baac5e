"""The embedded model's pictures, its recipe, and the model itself where it counts."""

import json

import numpy as np
import pytest
import torch
from conftest import processor, tokenizer

import ptp
from ptp.bench.measure import answer, encode_prompt
from ptp.evaluation.accuracy import evidence_tokens, fresh_examples
from ptp.tiny import train
from ptp.tiny.drawing import GRIDS, LABELS, TILE, draw_scene
from ptp.tiny.model import build_config, build_model
from ptp.tiny.tasks import TASKS, ask


@pytest.mark.parametrize("grid", GRIDS)
def test_signs_are_unambiguous_and_inside_one_tile(grid):
    for seed in range(10):
        signs = draw_scene(np.random.default_rng(seed), grid).signs
        assert signs
        assert len({(sign.color, sign.shape) for sign in signs}) == len(signs) == len({sign.label for sign in signs})
        for number, sign in enumerate(signs):
            left, top, right, bottom = sign.box
            assert left // TILE == (right - 1) // TILE < grid[0] and top // TILE == (bottom - 1) // TILE < grid[1]
            for other in signs[:number]:
                a, b, c, d = other.box
                assert right <= a or left >= c or bottom <= b or top >= d


def test_the_same_seed_draws_the_same_picture():
    pictures = [np.asarray(draw_scene(np.random.default_rng(3), (3, 2)).image) for _ in range(2)]
    assert (pictures[0] == pictures[1]).all()


def test_questions_have_one_right_answer():
    rng = np.random.default_rng(0)
    scene = draw_scene(rng, (4, 3))
    for _ in range(50):
        example = ask(rng, scene, "read")
        assert example.answer in LABELS and f"{example.sign.color} {example.sign.shape}" in example.question
        example = ask(rng, scene, "color")
        assert example.answer == example.sign.color and f" {example.sign.label}" in example.question
    with pytest.raises(ValueError, match="task must be one of read, color"):
        ask(rng, scene, "sing")


def test_training_sees_what_the_processor_makes_of_the_picture():
    scene = draw_scene(np.random.default_rng(1), (3, 2))
    pixels = processor().image_processor(scene.image, return_tensors="pt")["pixel_values"]
    tiles = torch.from_numpy(train.cut(scene)).permute(0, 3, 1, 2).float() / 255
    expected = (tiles - torch.tensor(train.IMAGE_MEAN).view(3, 1, 1)) / torch.tensor(train.IMAGE_STD).view(3, 1, 1)
    torch.testing.assert_close(pixels, expected, atol=1e-4, rtol=0)


def test_packed_questions_cost_no_exactness():
    """Each question of a packed sequence gets the logits it gets alone in the chat template's own prompt."""
    model = build_model(build_config(tokenizer()), 0)
    phase = train.CURRICULUM[-2]
    batch = train.draw_batch(np.random.default_rng(0), tokenizer(), phase, 10)
    count, tiles = batch.pixels.shape[:2]
    features = model.model.get_image_features(batch.pixels.flatten(0, 1), return_dict=True).pooler_output
    with torch.no_grad():
        _, right = train.answer_loss(model, tokenizer(), batch, features.view(count, tiles, 16, -1))
        for q in range(train.QUESTIONS):
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
    """20 fresh pictures: far above guessing in full, hardly worse at half the tokens, and the asked sign is kept."""
    model, proc = tiny
    full = half = 0
    evidence = []
    for scene, examples in fresh_examples(20, seed=99, split="tune", tasks=tuple(TASKS)):
        for example in examples:
            inputs = encode_prompt(proc, [scene.image], example.question, model)
            full += answer(model, proc, inputs, 4) == example.answer
            with ptp.PyramidPruner(keep_ratio=0.5)(model) as trace:
                half += answer(model, proc, inputs, 4) == example.answer
            tokens = evidence_tokens(example.sign, trace.images[0])
            evidence.append(len(set(tokens) & set(trace.images[0].kept.tolist())) / len(tokens))
    assert full >= 32 and half >= full - 3
    assert np.mean(evidence) > 0.8


def test_the_embedded_model_is_small_and_complete():
    from importlib import resources

    weights = resources.files("ptp.tiny").joinpath("weights")
    assert sum(len(file.read_bytes()) for file in weights.iterdir()) < 16 * 2**20
    config = json.loads(weights.joinpath("config.json").read_text())
    assert config["model_type"] == "internvl" and config["text_config"]["model_type"] == "qwen2"


def test_five_lines_from_the_readme(tiny):
    model, proc = tiny
    inputs = encode_prompt(proc, [draw_scene(np.random.default_rng(0), (4, 3)).image], "Read the red circle.", model)
    pruner = ptp.PyramidPruner(keep_ratio=0.5)
    with pruner(model) as trace:
        output = model.generate(**inputs, max_new_tokens=64)
    assert "208 -> 104 visual tokens" in str(trace) and output.shape[1] > inputs["input_ids"].shape[1]
