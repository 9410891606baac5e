"""Everything `generate` does with a pruned prefill, and what the trace tells of it."""

import copy
import json

import pytest
import torch
from conftest import encode, picture, prompt, small_model, tokenizer
from transformers import Qwen2ForCausalLM

import ptp
from ptp.adapters import adapter_for


def pruned(model, inputs, **settings):
    with ptp.PyramidPruner(keep_ratio=0.25)(model, tokenizer()) as trace:
        return model.generate(**inputs, max_new_tokens=5, **settings), trace


def test_original_prompt_ids_come_back(model):
    inputs = encode(prompt(picture(1, (2, 2))))
    ids, _ = pruned(model, inputs, do_sample=False)
    assert torch.equal(ids[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])


def test_beams_and_several_answers_share_the_pruned_picture(model):
    batch = encode(prompt(picture(1, (2, 2))), prompt(picture(2, (3, 1)), picture(3, (1, 1)), question="Read it."))
    ids, trace = pruned(model, batch, num_beams=3, num_return_sequences=2, do_sample=False)
    assert ids.shape[0] == 4 and len(trace.images) == 3 * 3
    for row, conversation in enumerate(
        [prompt(picture(1, (2, 2))), prompt(picture(2, (3, 1)), picture(3, (1, 1)), question="Read it.")]
    ):
        alone, single = pruned(model, encode(conversation), num_beams=3, num_return_sequences=2, do_sample=False)
        assert ids[2 * row : 2 * row + 2, -5:].tolist() == alone[:, -5:].tolist()
        mine = [image for image in trace.images if image.row // 3 == row]
        for image, other in zip(mine, single.images, strict=True):
            assert image.kept.tolist() == other.kept.tolist()


def test_sampling_is_reproducible(model):
    inputs = encode(prompt(picture(1, (2, 2))))
    torch.manual_seed(3)
    first, _ = pruned(model, inputs, do_sample=True)
    torch.manual_seed(3)
    assert torch.equal(first, pruned(model, inputs, do_sample=True)[0])


@pytest.mark.since_5_18
@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_assisted_decoding_gives_the_greedy_answer(layer, noise):
    """The model's own language model guesses, blind and with noise: some guesses are taken, the rest cropped off the cache."""
    model, inputs = small_model(), encode(prompt(picture(1, (2, 2))))
    assistant = Qwen2ForCausalLM(model.config.text_config).eval()
    assistant.model.load_state_dict(model.model.language_model.state_dict())
    assistant.lm_head.load_state_dict(model.lm_head.state_dict())
    assistant.generation_config = model.generation_config
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in assistant.parameters():
            parameter.add_(noise * torch.randn_like(parameter) * parameter.std())
    with ptp.PyramidPruner(keep_ratio=0.25, prune_layer=layer)(model, tokenizer()):
        alone, helped = (
            model.generate(**inputs, max_new_tokens=12, do_sample=False, assistant_model=guesses)
            for guesses in (None, assistant)
        )
    assert torch.equal(alone, helped)


def test_without_a_cache_every_step_prunes_afresh(model):
    """At layer 0 that is the same thing; later, new tokens see the dropped ones in the layers below."""
    inputs = encode(prompt(picture(1, (2, 2))))
    with ptp.PyramidPruner(keep_ratio=0.25, prune_layer=0)(model, tokenizer()):
        runs = [model.generate(**inputs, max_new_tokens=5, do_sample=False, use_cache=cache) for cache in (True, False)]
    assert torch.equal(*runs)


def test_bfloat16_runs_and_keeps_the_budget():
    model = copy.deepcopy(small_model()).bfloat16()
    inputs = encode(prompt(picture(1, (3, 2))))
    ids, trace = pruned(model, {**inputs, "pixel_values": inputs["pixel_values"].bfloat16()}, do_sample=False)
    assert trace.visual_tokens == (112, 28) and ids.shape[1] == inputs["input_ids"].shape[1] + 5
    assert all(score.dtype == torch.float32 for score in trace.images[0].scores.values())


def test_the_trace_counts_what_was_saved(model):
    inputs = encode(prompt(picture(1, (3, 2)), picture(2, (1, 1))))
    _, trace = pruned(model, inputs, do_sample=False)
    length = inputs["input_ids"].shape[1]
    after = length - (112 - 28) - (16 - 4)
    per_token = 2 * 4 * 2 * 12 * 4  # keys and values, layers, heads, width, bytes
    assert trace.sequence_length == (length, after)
    assert trace.cache_bytes == (length * per_token, after * per_token)
    first, second = trace.images
    assert first.grid == (3, 2) and len(first.budgets) == 7 and sum(first.budgets) == len(first.kept) == 28
    for image in (first, second):
        assert (inputs["input_ids"][0, image.positions] == model.config.image_token_id).all()
        assert image.kept.tolist() == sorted(set(image.kept.tolist())) and image.kept.max() < image.num_tokens
    text = str(trace)
    assert "128 -> 32 visual tokens" in text and "3 x 2 tiles and thumbnail" in text
    assert json.loads(json.dumps(trace.to_dict()))["images"][0]["kept"] == first.kept.tolist()


def test_score_maps_can_be_switched_off(model):
    inputs = encode(prompt(picture(1, (2, 2))))
    with torch.no_grad():
        with ptp.PyramidPruner(record_scores=False)(model, tokenizer()) as trace:
            model(**inputs)
        assert trace.images[0].scores == {}
        with ptp.PyramidPruner()(model, tokenizer()) as with_maps:
            model(**inputs)
    assert with_maps.images[0].kept.tolist() == trace.images[0].kept.tolist()


def test_attach_prunes_until_removed(model):
    inputs = encode(prompt(picture(1, (2, 2))))
    length = inputs["input_ids"].shape[1]
    handle = ptp.attach(model, ptp.PyramidPruner(keep_ratio=0.1), tokenizer())
    with torch.no_grad():
        assert model(**inputs).logits.shape[1] == length - 72
        assert handle.trace.visual_tokens == (80, 8)
        handle.remove()
        assert model(**inputs).logits.shape[1] == length


@pytest.mark.parametrize(
    "settings",
    [
        {"alpha": 0}, {"alpha": 1}, {"region_alpha": 0.5}, {"normalize": "tile"}, {"thumbnail_keep": 0}, {"scope": "tile"},
        {"diversity": 0}, {"relevance": "similarity", "prune_layer": 1}, {"alpha": 0, "region_alpha": 1},
    ],
)  # fmt: skip
@pytest.mark.parametrize("region", ["thumbnail_attention", "attention_mass", "cls_similarity", "uniform"])
def test_every_setting_keeps_the_budget(region, settings):
    inputs = encode(prompt(picture(1, (3, 2)), picture(2, (1, 1))), prompt(question="Hello"))
    with torch.no_grad(), ptp.PyramidPruner(keep_ratio=0.3, region=region, **settings)(small_model(), tokenizer()) as trace:
        small_model()(**inputs)
    assert [sum(image.budgets) for image in trace.images] == [round(0.3 * 112), round(0.3 * 16)]
    for image in trace.images:
        counts = torch.bincount(torch.repeat_interleave(torch.tensor(image.sizes))[image.kept], minlength=len(image.sizes))
        assert counts.tolist() == image.budgets


@pytest.mark.parametrize("thumbnail_keep", [None, 0.5])
def test_without_regions_the_best_tokens_of_the_picture_stay(thumbnail_keep):
    inputs = encode(prompt(picture(1, (3, 2))))
    settings = {"region": "uniform", "region_alpha": 0.0, "diversity": 0.0, "thumbnail_keep": thumbnail_keep}
    with torch.no_grad(), ptp.PyramidPruner(keep_ratio=0.3, **settings)(small_model(), tokenizer()) as trace:
        small_model()(**inputs)
    (image,) = trace.images
    fused, total = image.scores["fused"].tolist(), round(0.3 * 112)
    own = 0 if thumbnail_keep is None else 8
    pool, rest = (range(112), ()) if thumbnail_keep is None else (range(96), range(96, 112))
    best = sorted(pool, key=lambda j: -fused[j])[: total - own] + sorted(rest, key=lambda j: -fused[j])[:own]
    assert image.kept.tolist() == sorted(best)


def test_the_published_form_reads_attention_and_keeps_to_tile_budgets():
    method = ptp.PyramidPruner.published(keep_ratio=0.3, prune_layer=1)
    assert (method.alpha, method.relevance, method.scope, method.diversity) == (0.5, "attention", "tile", 0)
    with torch.no_grad(), method(small_model(), tokenizer()) as trace:
        small_model()(**encode(prompt(picture(1, (3, 2)))))
    assert trace.images[0].budgets[-1] == round(0.3 * 16), "the thumbnail has a budget of its own"


@pytest.mark.parametrize("grid", [(4, 3), (3, 4), (6, 2), (2, 6), (12, 1), (1, 5), (2, 2), (3, 1)])
def test_the_grid_is_read_off_the_pixels(grid):
    inputs = encode(prompt(picture(7, grid)))
    with torch.no_grad(), ptp.PyramidPruner()(small_model(), tokenizer()) as trace:
        small_model()(**inputs)
    assert trace.images[0].grid == grid


@pytest.mark.parametrize(
    ("conversation", "instruction"),
    [
        (prompt(picture(1, (1, 1)), question="Read the red circle."), "Read the red circle."),
        (
            [{"role": "system", "content": "Be brief."}, *prompt(question="Name the color of sign K.")],
            "Name the color of sign K.",
        ),
        (
            [*prompt(question="Hello"), {"role": "assistant", "content": "red"}, *prompt(question="What is on it?")],
            "What is on it?",
        ),
    ],
)
def test_the_trace_tells_the_instruction(conversation, instruction):
    method, model = ptp.PyramidPruner(keep_ratio=0.25), small_model()
    batch = encode(
        [*conversation[:-1], *prompt(picture(1, (1, 1)), question=instruction)], prompt(picture(2, (1, 1)), question="x")
    )
    with torch.no_grad(), method(model, tokenizer()) as trace:
        model(**batch)
    assert [image.instruction for image in trace.images] == [instruction, "x"]
    assert json.loads(json.dumps(trace.to_dict()))["images"][0]["instruction"] == instruction
    with torch.no_grad(), ptp.PyramidPruner(alpha=0)(model, tokenizer()) as trace:
        model(**batch)
    assert [image.instruction for image in trace.images] == ["", ""], "a method that reads none"


def test_the_adapter_finds_pictures_in_order():
    inputs = encode(prompt(picture(1, (2, 1))), prompt(picture(2, (1, 1)), picture(3, (3, 1))), prompt(question="no picture"))
    adapter = adapter_for(small_model())
    tokens = adapter.visual_tokens(inputs["input_ids"])
    about = adapter.about({"pixel_values": torch.rand(8, 3, 112, 112)}, 448)
    spans = adapter.locate(inputs["input_ids"], tokens, about, [])
    assert [(span.row, len(span.layout.sizes), span.units) for span in spans] == [
        (0, 3, (0, 1, 2)), (1, 1, (3,)), (1, 4, (4, 5, 6, 7)),
    ]  # fmt: skip
